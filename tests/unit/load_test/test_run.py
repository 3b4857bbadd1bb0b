"""Load tests against a scripted API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance.domain.errors import ApplianceError
from appliance.load_test.run import LoadTest, example_input
from appliance.protocols.sse import ServerSentEvent


class Scripted:
    """An API whose predictions output two tokens, or wait until they are canceled."""

    def __init__(self) -> None:
        self.created = 0
        self.canceled: list[str] = []
        self.endless = False
        self.waiting = 0  # creations that are not accepted yet, and streams that do not end
        self.accepting = asyncio.Event()
        self.accepting.set()
        self.statuses = ["succeeded"]  # of the predictions, in turn

    async def get(self, path: str) -> Any:
        if path.endswith("/examples"):
            return {"results": [{"input": {"text": "of the example"}}] if "with" in path else []}
        status = self.statuses[int(path.rpartition("/")[2]) % len(self.statuses)]
        error = "out of luck" if status == "failed" else None
        return {"status": status, "error": error, "metrics": {"output_token_count": 2}}

    async def post(self, path: str, body: Any = None) -> Any:
        if path.endswith("/cancel"):
            self.canceled.append(path.split("/")[3])
            return None
        self.waiting += 1
        await self.accepting.wait()
        self.waiting -= 1
        number = self.created
        self.created += 1
        return {"id": str(number), "urls": {"stream": "/v1/streams/secret"}}

    async def stream(self, url: str) -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent("output", "one")
        self.waiting += self.endless
        await asyncio.sleep(3600 if self.endless else 0.001)
        yield ServerSentEvent("output", "two")
        yield ServerSentEvent("done", "{}")


def load_test(api: Scripted, seconds: float = 0.05) -> LoadTest:
    return LoadTest(api, "test/stream", {"text": "one two"}, clients=3, seconds=seconds)


async def test_predictions_are_measured_but_not_the_first() -> None:
    api = Scripted()
    test = load_test(api)
    await test.run()
    results = test.results
    assert results.warm_up is not None
    assert results.requests == results.succeeded == api.created - 1 >= 3
    assert results.output_tokens == 2 * results.succeeded
    assert results.duration is not None
    assert results.time_to_first_token is not None
    assert results.inter_token_latency is not None
    assert api.canceled == []


async def test_failed_predictions_are_errors() -> None:
    api = Scripted()
    api.statuses = ["succeeded", "failed"]
    test = load_test(api)
    await test.run()
    assert set(test.results.errors) == {"out of luck"}
    assert 0 < test.results.error_rate < 1


async def test_the_test_ends_if_its_first_prediction_fails() -> None:
    api = Scripted()
    api.statuses = ["failed"]
    with pytest.raises(ApplianceError, match="out of luck"):
        await load_test(api).run()
    assert api.created == 1


@pytest.mark.parametrize("created", [True, False], ids=["running", "being created"])
async def test_a_cancelled_test_cancels_all_its_predictions(created: bool) -> None:
    api = Scripted()
    test = load_test(api, seconds=3600)
    running = asyncio.create_task(test.run())
    while api.created < 4:
        await asyncio.sleep(0.001)
    api.endless = created
    if not created:
        api.accepting.clear()
    while api.waiting < 3:
        await asyncio.sleep(0.001)
    before = api.created
    running.cancel()
    await asyncio.sleep(0)
    api.accepting.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert api.created == before + (0 if created else 3)
    newest = {str(number) for number in range(api.created - 3, api.created)}
    assert set(api.canceled) == newest


async def test_the_input_of_an_example_is_the_default() -> None:
    api = Scripted()
    assert await example_input(api, "test/with:version") == {"text": "of the example"}
    assert await example_input(api, "test/none") == {}
    assert await example_input(api, "f" * 64) == {}
