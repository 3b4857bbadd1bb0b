"""The last hour of the machine and the logs of models, through the API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.prediction import Prediction, Status
from appliance.observability.history import Sample
from appliance.worker.model_logs import log_file
from tests.support.api_client import Api
from tests.support.engine_bench import Bench


async def test_the_history_has_the_work_of_models(api: Api, bench: Bench) -> None:
    sampler = bench.sampler
    sampler.history.add(sampler.sample(bench.engine.status(), 1_000_000.0))
    record = await api.create(text="x")
    await api.ended(record)
    sampler.history.add_tokens("test/echo", 20, 1_000_000.0, 1_000_005.0)
    sampler.count_engine("test/echo", EngineMetrics(kv_cache_usage=0.75))
    sampler.count_engine("test/echo#2", EngineMetrics(kv_cache_usage=0.5))
    sampler.history.add(sampler.sample(bench.engine.status(), 1_000_005.0))
    told: dict[str, Any] = (await api.get("/admin/history")).json()
    assert [at[-9:] for at in told["at"]] == ["0.000000Z", "5.000000Z"]
    (device,) = told["devices"]
    assert (device["name"], device["utilisation"]) == ("cpu", None)
    assert [bytes > 0 for bytes in device["reserved"]["test/echo"]] == [False, True]
    (load,) = told["loads"]
    assert load["model"] == "test/echo"
    model = next(each for each in told["models"] if each["name"] == "test/echo")
    assert model["tokens_per_second"] == [4.0, 0.0]
    assert model["kv_cache"] == [0.0, 0.75]
    assert all(0 < free <= told["memory"] for free in told["available"])


async def test_tokens_of_an_engine_that_measures_itself_are_counted_when_generated(
    api: Api, bench: Bench
) -> None:
    sampler = bench.sampler
    sampler.count_engine("test/echo", EngineMetrics(generation_tokens=10))
    sampler.count_engine("test/echo#2", EngineMetrics(generation_tokens=5))
    assert sampler.sample(bench.engine.status(), 1.0).tokens == {"test/echo": 15.0}
    record = Prediction(
        id="x",
        model="test/echo",
        version="v",
        owner="me",
        input={},
        source="api",
        stream_token="",
        status=Status.SUCCEEDED,
        created_at=1.0,
        started_at=1.0,
        completed_at=6.0,
        metrics={"output_token_count": 15},
    )
    sampler.history.add(Sample(at=1.0))
    sampler.history.add(Sample(at=6.0))
    sampler.count_prediction(record)  # its tokens are counted already
    assert sampler.history.samples()[-1].tokens == {}
    assert sampler.sample(bench.engine.status(), 6.0).tokens == {}


async def test_the_number_of_points_is_limited(api: Api, bench: Bench) -> None:
    for number in range(10):
        bench.sampler.history.add(Sample(at=5.0 * number, queued={"test/echo": number}))
    told = (await api.get("/admin/history?points=3")).json()
    assert told["models"][0]["queued"] == [1, 5, 9]
    refused = await api.get("/admin/history?points=721")
    assert refused.status_code == 422
    assert "points" in refused.json()["detail"]


async def test_the_log_of_a_model_has_no_secrets(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "very-private")
    file = log_file(bench.folder / "run", "test/echo")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "first\nvery-private is a secret\nGET https://x.example/a?key=abc\nAuthorization: Bearer abcdefghij\n"
    )
    told = (await api.get("/admin/models/test/echo/logs?lines=3")).json()
    assert told == {
        "model": "test/echo",
        "instances": [
            {
                "instance": "test/echo",
                "lines": ["*** is a secret", "GET https://x.example/a?***", "Authorization: Bearer ***"],
            }
        ],
    }
    assert (await api.get("/admin/models/test/stream/logs")).json()["instances"] == []
    assert (await api.get("/admin/models/no/such/logs")).status_code == 404


async def test_new_lines_of_a_log_are_streamed_until_the_token_is_revoked(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = log_file(bench.folder / "run", "test/echo")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("before\n")
    from appliance.gateway.api.admin import model_logs

    followed = model_logs._Followed(bench.folder / "run", "test/echo", 10, ())
    valid = True

    async def allowed() -> bool:
        return valid

    events = model_logs._events(followed, allowed)
    assert await anext(events) == b": hi\n\n"
    assert b"before" in await anext(events)
    with file.open("a") as log:
        log.write("after\n")
    _, _, data, *_ = (await anext(events)).decode().split("\n")
    assert json.loads(data.removeprefix("data: ")) == {"instance": "test/echo", "lines": ["after"]}
    monkeypatch.setattr(model_logs, "IDLE", 0.0)
    valid = False
    assert [event async for event in events] in ([], [b": hi\n\n"])
