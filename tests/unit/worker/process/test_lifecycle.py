"""The predictions of a worker process."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.interface import Interface
from appliance.domain.prediction import Done, Job, Output
from appliance.worker.process.lifecycle import WorkerProcess
from appliance.worker.protocol import Events, MessageReader, WorkerReady
from tests.support.scripted_worker import spec


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data


class WaitingRunner:
    """Outputs the number of the attempt, and ends, once ``go`` is set."""

    levels = ()

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running: list[int] = []

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        raise NotImplementedError

    async def setup(self) -> None: ...

    async def close(self) -> None: ...

    async def run(self, job: Job) -> AsyncIterator[Output]:
        self.running.append(job.attempt)
        try:
            await self.go.wait()
            yield Output([job.attempt])
        finally:
            self.running.remove(job.attempt)


def ready(runner: WaitingRunner) -> tuple[Transport, WorkerProcess]:
    """Return a worker process that has loaded its model and takes two predictions at once."""
    transport = Transport()
    worker = WorkerProcess(msgspec.structs.replace(spec(), concurrency=2), io.StringIO(), lambda: None)
    worker.connection_made(transport)
    worker.ready(runner, WorkerReady())
    transport.written = b""
    return transport, worker


class MeasuredRunner(WaitingRunner):
    """Has generated one token more at each call of ``take_metrics`` after ``go`` is set."""

    def take_metrics(self) -> EngineMetrics | None:
        return EngineMetrics(generation_tokens=1) if self.go.is_set() else None


async def test_the_metrics_of_the_engine_are_sent_when_the_last_prediction_ends() -> None:
    """The model may be unloaded at once, before the next second."""
    runner = MeasuredRunner()
    transport, worker = ready(runner)
    worker.start([Job("a", 1, {}), Job("b", 1, {})])
    async with asyncio.timeout(60):
        while len(runner.running) < 2:
            await asyncio.sleep(0.001)
        runner.go.set()
        while transport.written.count(b"succeeded") < 2 or b"engine_metrics" not in transport.written:
            await asyncio.sleep(0.001)
    messages = MessageReader(msgspec.msgpack.Decoder(Events | EngineMetrics)).feed(transport.written)
    sent = [message for message in messages if isinstance(message, EngineMetrics)]
    assert sent == [EngineMetrics(generation_tokens=1)]


async def test_the_latest_attempt_of_a_prediction_runs_alone() -> None:
    runner = WaitingRunner()
    transport, worker = ready(runner)
    for attempt in (1, 2, 1, 2):  # the last two come from the connection of an earlier gateway
        worker.start([Job("a", attempt, {})])
        for _ in range(10):
            await asyncio.sleep(0)
    assert runner.running == [2]
    runner.go.set()
    async with asyncio.timeout(60):
        while b"succeeded" not in transport.written:
            await asyncio.sleep(0.001)
    messages = MessageReader(msgspec.msgpack.Decoder(Events)).feed(transport.written)
    events = [(each.attempt, each.event) for message in messages for each in message.events]
    assert [event for event in events if isinstance(event[1], Output | Done)] == [
        (1, Done("canceled")),
        (2, Output([2])),
        (2, Done("succeeded")),
    ]
