"""Runs a load test."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Protocol

from appliance.domain.errors import ApplianceError, Throttled
from appliance.domain.usage import count
from appliance.load_test.results import Collector, LoadTestResults, RequestTiming
from appliance.protocols.sse import ServerSentEvent

_PAUSE: Final = 0.5  # seconds that a client waits after an error, so as not to flood a failing model


class ApiClient(Protocol):
    """Calls the API with a token. Failures are ``ApplianceError``."""

    async def get(self, path: str) -> Any: ...

    async def post(self, path: str, body: Any = None) -> Any: ...

    def stream(self, url: str) -> AsyncIterator[ServerSentEvent]: ...


class LoadTest:
    """A load test of one model: each client creates its next prediction when its last one has ended."""

    def __init__(
        self, caller: ApiClient, model: str, input: Mapping[str, Any], *, clients: int, seconds: float
    ) -> None:
        """``model`` is an ``owner/name``, an ``owner/name:version``, a version id or an alias."""
        self._caller = caller
        self._body = {"version": model, "input": dict(input)}
        self._clients = clients
        self._seconds = seconds
        self._collector = Collector(model, clients)
        self._began: float | None = None

    @property
    def results(self) -> LoadTestResults:
        """The results until now."""
        return self._collector.results()

    @property
    def elapsed(self) -> float:
        """Seconds since the first counted request; 0 during the prediction before the test."""
        return 0.0 if self._began is None else time.perf_counter() - self._began

    async def run(self) -> None:
        """Run a prediction to warm up, then the test. If this coroutine is cancelled, so are its predictions.

        Once the time is over, no prediction is created; running ones are awaited and counted.

        Raises:
            ApplianceError: the prediction before the test was refused or failed, so all others would too.
        """
        self._collector.warm_up = (await self._predict()).duration
        self._began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._repeat())

    async def _repeat(self) -> None:
        while self.elapsed < self._seconds:
            pause = 0.0
            try:
                self._collector.add(await self._predict())
            except ApplianceError as error:
                self._collector.add_error(error.detail)
                pause = error.retry_after if isinstance(error, Throttled) else _PAUSE
            self._collector.seconds = self.elapsed
            await asyncio.sleep(min(pause, max(0.0, self._seconds - self.elapsed)))

    async def _predict(self) -> RequestTiming:
        """Run one prediction.

        Raises:
            ApplianceError: the prediction was refused or did not succeed.
        """
        began = time.perf_counter()
        outputs: list[float] = []
        creation = asyncio.ensure_future(self._caller.post("/v1/predictions", self._body))
        try:
            created = await asyncio.shield(creation)
            async for event in self._caller.stream(created["urls"]["stream"]):
                if event.name == "output":
                    outputs.append(time.perf_counter() - began)
        except asyncio.CancelledError:
            with contextlib.suppress(ApplianceError):  # refused, or the appliance has stopped
                await self._caller.post(f"/v1/predictions/{(await creation)['id']}/cancel")
            raise
        duration = time.perf_counter() - began
        final = await self._caller.get(f"/v1/predictions/{created['id']}")
        if final["status"] != "succeeded":
            raise ApplianceError(final.get("error") or f"prediction ended with status {final['status']}")
        metrics = final.get("metrics") or {}
        tokens = count(metrics["output_token_count"]) if "output_token_count" in metrics else None
        return RequestTiming(duration=duration, outputs=outputs, tokens=tokens)


async def example_input(caller: ApiClient, model: str) -> dict[str, Any]:
    """Return the input of the first example of a model; empty if the model has none."""
    if "/" not in model:
        return {}
    found = (await caller.get(f"/v1/models/{model.partition(':')[0]}/examples"))["results"]
    return dict(found[0]["input"]) if found else {}
