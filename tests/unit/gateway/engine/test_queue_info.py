"""What a client sees of why its prediction waits."""

from __future__ import annotations

from typing import Any

from appliance.domain.prediction import Prediction, Status
from tests.support.api_client import Api
from tests.support.engine_bench import Bench, entry


async def seen(bench: Bench, prediction: Prediction) -> dict[str, Any]:
    return (await bench.engine.get(prediction.id, "me")).metrics


async def test_a_prediction_behind_others_shows_its_place(bench: Bench) -> None:
    running = [await bench.submit(delay=30) for _ in range(2)]
    for prediction in running:
        await bench.until(prediction, Status.PROCESSING)
    first, second = await bench.submit(text="first"), await bench.submit(text="second")
    assert await seen(bench, first) == {"queue_position": 1, "waits_for": "slot"}
    assert await seen(bench, second) == {"queue_position": 2, "waits_for": "slot"}
    assert [each.metrics.get("queue_position") for each in await bench.engine.list("me")] == [
        2,
        1,
        None,
        None,
    ]
    await bench.engine.cancel(first.id, "me")
    assert (await seen(bench, second))["queue_position"] == 1
    for prediction in running:
        await bench.engine.cancel(prediction.id, "me")
    record = await bench.ended(second)
    assert not {"queue_position", "waits_for"} & set(record.metrics)


async def test_it_shows_that_its_model_is_loaded_or_has_no_memory_yet(bench: Bench) -> None:
    slow = entry("test/slow", startup_delay=30.0)
    large = entry("test/large")
    bench.more = [slow, large]
    await bench.restart()
    loading = await bench.submit(slow, text="x")
    crowded = await bench.submit(large, text="y")
    assert await seen(bench, loading) == {"queue_position": 1, "waits_for": "load"}
    assert await seen(bench, crowded) == {"queue_position": 1, "waits_for": "room"}
    for prediction in (loading, crowded):
        await bench.engine.cancel(prediction.id, "me")


async def test_the_api_shows_it_until_the_prediction_begins(api: Api) -> None:
    running = [await api.create(delay=30) for _ in range(2)]
    waiting = await api.create(text="hello")
    while (found := (await api.get(waiting["urls"]["get"])).json())["status"] == "starting":
        if (found.get("metrics") or {}).get("waits_for") == "slot":
            break
    assert found["metrics"] == {"queue_position": 1, "waits_for": "slot"}
    for record in running:
        await api.post(record["urls"]["cancel"])
    assert (await api.ended(waiting))["output"] == "hello"
