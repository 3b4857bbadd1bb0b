"""The engine on a real store and a real echo model, in one process: every way a prediction can end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import InvalidInput, ModelTooLarge, NotFound, ShuttingDown, StoreError, Throttled
from appliance.domain.prediction import Prediction, Status
from appliance.gateway.engine import saver
from appliance.gateway.engine.active import Events
from tests.support.engine_bench import Bench, entry, refusal


async def test_a_prediction_is_accepted_then_run_then_stored(bench: Bench) -> None:
    accepted = await bench.submit(text="hello", unknown="ignored")
    assert accepted.status is Status.STARTING
    record = await bench.ended(accepted)
    assert (record.status, record.output, record.error) == (Status.SUCCEEDED, "hello", None)
    assert record.input == {"text": "hello", "unknown": "ignored"}  # verbatim, without defaults
    assert record.started_at is not None
    assert record.completed_at is not None
    assert accepted.created_at <= record.started_at <= record.completed_at
    assert record.metrics["total_time"] >= record.metrics["predict_time"] >= 0


async def test_bad_input_is_refused_and_nothing_is_stored(bench: Bench) -> None:
    with pytest.raises(InvalidInput, match=r"input\.repeat"):
        await bench.submit(repeat="often")
    assert list(await bench.engine.list("me")) == []


async def test_a_failure_is_the_models_own_words(bench: Bench) -> None:
    record = await bench.ended(await bench.submit(fail="out of ideas", print="thinking"))
    assert (record.status, record.error) == (Status.FAILED, "out of ideas")


async def test_what_another_owner_made_is_not_found(bench: Bench) -> None:
    prediction = await bench.submit(text="mine")
    for call in (bench.engine.get, bench.engine.cancel):
        with pytest.raises(NotFound):
            await call(prediction.id, "you")
    with pytest.raises(NotFound):
        await bench.engine.get("0" * 26, "me")


async def test_an_iterator_that_yields_nothing_has_an_empty_list(bench: Bench) -> None:
    prediction = await bench.submit(bench.stream, text="")
    record = await bench.ended(prediction)
    assert (record.status, record.output) == (Status.SUCCEEDED, [])
    failed = await bench.ended(await bench.submit(bench.stream, text="", fail="out of ideas"))
    assert (failed.status, failed.output) == (Status.FAILED, None)


async def test_waiting_ends_in_time_with_the_prediction_still_running(bench: Bench) -> None:
    prediction = await bench.submit(delay=30)
    record = await bench.engine.wait(prediction.id, 0.05)
    assert record is not None
    assert not record.status.terminal
    await bench.engine.cancel(prediction.id, "me")


async def test_a_queued_prediction_is_canceled_at_once(bench: Bench) -> None:
    running = [await bench.submit(delay=30) for _ in range(2)]
    queued = await bench.submit(text="never")
    record = await bench.engine.cancel(queued.id, "me")
    assert (record.status, record.started_at) == (Status.CANCELED, None)
    for prediction in running:
        await bench.engine.cancel(prediction.id, "me")


async def test_a_canceled_run_keeps_its_output_and_frees_its_slot(bench: Bench) -> None:
    prediction = await bench.submit(bench.stream, text="word ", repeat=1000, chunk_delay=0.01)
    await bench.output_of(prediction)
    record = await bench.engine.cancel(prediction.id, "me")
    assert record.status is Status.CANCELED
    assert record.output
    assert await bench.engine.cancel(prediction.id, "me") == record
    after = await bench.ended(await bench.submit(bench.stream, text="next"))
    assert after.status is Status.SUCCEEDED


async def everything(bench: Bench, prediction: Prediction, after: int = 0) -> list[Any]:
    """Each item with its number, then the record."""
    found: list[Any] = []
    async for seen in bench.engine.follow(prediction, after):
        found += seen if isinstance(seen, list) else [seen]
    return found


async def test_followers_see_each_item_once_in_order_whenever_they_come(bench: Bench) -> None:
    prediction = await bench.submit(bench.stream, text="a b c ", repeat=5, chunk_delay=0.01)

    async def read(after: int) -> list[Any]:
        return await everything(bench, prediction, after)

    early, resumed = await asyncio.gather(read(0), read(3))
    late = await read(0)
    *items, last = early
    assert [index for index, _ in items] == list(range(1, len(items) + 1))
    assert "".join(value for _, value in items) == "a b c " * 5
    assert isinstance(last, Prediction)
    assert last.status is Status.SUCCEEDED
    assert resumed == early[3:]
    assert late == early


async def test_the_stream_of_an_unfinished_prediction_is_found_without_a_query(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = await bench.submit(delay=30)
    queries: list[str] = []

    async def query(token: str) -> Prediction | None:
        queries.append(token)
        return None

    monkeypatch.setattr(bench.store, "by_stream_token", query)
    found = await bench.engine.by_stream_token(prediction.stream_token)
    assert (found.id, queries) == (prediction.id, [])
    await bench.engine.cancel(prediction.id, "me")
    with pytest.raises(NotFound):
        await bench.engine.by_stream_token(prediction.stream_token)
    assert queries == [prediction.stream_token]


async def test_an_output_without_items_is_followed_as_one_item(bench: Bench) -> None:
    prediction = await bench.submit(text="all", delay=0.05)
    seen = await everything(bench, prediction)
    assert seen[0] == (1, "all")
    assert len(seen) == 2


async def test_a_deadline_aborts_what_waits_and_cancels_what_runs(bench: Bench) -> None:
    soon = time.time() + 0.3
    running = [
        await bench.engine.submit(
            bench.echo, {"delay": 30}, owner="me", deadline=soon, parent=None, token=None, trace=None
        )
        for _ in range(2)
    ]
    waiting = await bench.engine.submit(
        bench.echo, {}, owner="me", deadline=soon - 0.2, parent=None, token=None, trace=None
    )
    assert (await bench.ended(waiting)).status is Status.ABORTED
    for prediction in running:
        assert (await bench.ended(prediction)).status is Status.CANCELED


async def test_what_shows_no_output_runs_again_after_its_worker_is_lost(bench: Bench) -> None:
    prediction = await bench.submit(text="again", delay=0.2)
    await bench.until(prediction, Status.PROCESSING)
    bench.cluster.lose("test/echo", "was killed by signal 9")
    record = await bench.ended(prediction)
    assert (record.status, record.output, record.attempt) == (Status.SUCCEEDED, "again", 2)


async def test_what_was_seen_is_not_run_again(bench: Bench) -> None:
    prediction = await bench.submit(bench.stream, text="word ", repeat=1000, chunk_delay=0.01)
    await bench.output_of(prediction)
    bench.cluster.lose("test/stream", "was killed by signal 9")
    record = await bench.ended(prediction)
    assert record.status is Status.FAILED
    assert record.error == "Prediction interrupted; please retry (code: PA): was killed by signal 9"
    assert record.output


async def test_attempts_are_bounded(bench: Bench) -> None:
    prediction = await bench.submit(delay=30)
    for attempt in (1, 2):
        while (await bench.until(prediction, Status.PROCESSING)).attempt < attempt:
            await asyncio.sleep(0.005)
        bench.cluster.lose("test/echo", "was killed by signal 9")
    record = await bench.ended(prediction)
    assert (record.status, record.attempt) == (Status.FAILED, 2)


async def test_a_restart_runs_what_waited_and_what_ran(bench: Bench) -> None:
    predictions = [await bench.submit(text=f"{number}", delay=0.3) for number in range(5)]
    await bench.until(predictions[0], Status.PROCESSING)
    await bench.restart()
    for number, prediction in enumerate(predictions):
        record = await bench.ended(prediction)
        assert (record.status, record.output) == (Status.SUCCEEDED, f"{number}")


async def test_a_restart_keeps_the_output_that_was_seen(bench: Bench) -> None:
    prediction = await bench.submit(bench.stream, text="word ", repeat=1000, chunk_delay=0.01)
    before = await bench.output_of(prediction)
    await bench.restart()
    record = await bench.ended(prediction)
    assert record.status is Status.FAILED
    assert record.output[: len(before.output)] == before.output


async def test_a_restart_finds_no_hole_where_the_store_refused_for_a_while(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full at times: what could not be written is written before what came after it."""
    append, refused = bench.store.append, 0

    def refusing(id: str, attempt: int, events: Events) -> asyncio.Future[None]:
        nonlocal refused
        refused += 1
        if refused % 3:
            return refusal(StoreError("the disk is full"))
        return append(id, attempt, events)

    monkeypatch.setattr(saver, "SAVE_INTERVAL", 0.02)
    monkeypatch.setattr(bench.store, "append", refusing)
    prediction = await bench.submit(bench.stream, text="a b c d e f g ", repeat=1000, chunk_delay=0.01)
    while refused < 10:
        before = await bench.output_of(prediction)
        await asyncio.sleep(0.005)
    await bench.restart()
    output = "".join((await bench.ended(prediction)).output)
    assert len(output) > len("".join(before.output)) / 2
    assert output == ("a b c d e f g " * 1000)[: len(output)]


async def test_a_version_that_is_gone_fails_and_says_so(bench: Bench) -> None:
    prediction = await bench.submit(delay=30)
    await bench.until(prediction, Status.PROCESSING)
    bench.echo = entry(concurrency=2, stream=True)
    await bench.restart()
    await bench.until(prediction, Status.FAILED)
    record = await bench.ended(prediction)
    assert record.status is Status.FAILED
    assert prediction.version in (record.error or "")


async def test_a_model_that_cannot_fit_is_refused_with_the_numbers(bench: Bench) -> None:
    with pytest.raises(ModelTooLarge, match=r"test/big needs 100\.0 MiB"):
        await bench.submit(bench.big)


async def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, queue_per_model=1).start()
    for _ in range(2):
        await bench.until(await bench.submit(delay=30), Status.PROCESSING)
    await bench.submit()
    with pytest.raises(Throttled) as caught:
        await bench.submit()
    assert caught.value.retry_after >= 1
    await bench.stop()
    await bench.cluster.close()


async def test_a_run_over_its_time_fails(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, run_timeout=0.1).start()
    record = await bench.ended(await bench.submit(delay=30))
    assert record.status is Status.FAILED
    assert "limits.run_timeout" in (record.error or "")
    await bench.stop()
    await bench.cluster.close()


async def test_draining_waits_for_what_runs_and_takes_nothing_new(bench: Bench) -> None:
    running = await bench.submit(text="done", delay=0.2)
    await bench.until(running, Status.PROCESSING)
    assert await bench.engine.drain(5) == 0
    assert (await bench.ended(running)).status is Status.SUCCEEDED
    with pytest.raises(ShuttingDown):
        await bench.submit()


async def test_load_and_unload_are_seen_in_the_status(bench: Bench) -> None:
    def state() -> str:
        (model,) = [m for m in bench.engine.status().models if m.name == "test/echo"]
        return model.state

    assert state() == "cold"
    await bench.engine.load(bench.echo)
    assert state() == "ready"
    await bench.engine.unload(bench.echo)
    deadline = time.monotonic() + 60
    while state() != "cold":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    assert (await bench.ended(await bench.submit(text="back"))).output == "back"


async def test_finished_predictions_are_acknowledged_to_the_model(bench: Bench) -> None:
    prediction = await bench.submit()
    await bench.ended(prediction)
    assert prediction.id in bench.cluster.acknowledged
