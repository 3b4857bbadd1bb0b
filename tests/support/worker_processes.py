"""A zygote and replicas with its worker processes, for integration tests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from appliance.builds import project
from appliance.config import CogModel
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import WorkerLost
from appliance.domain.prediction import Done, Emitted, Event, Job, Log, Metric, Output
from appliance.machine.processes import is_running
from appliance.runners.base import LoadSpec
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.protocol import Commands
from appliance.worker.replica import Replica
from tests.support.appliance_process import PATIENCE, ROOT, until, wait_for
from tests.support.replica_events import events_of

#: Seconds that a step of a model on several machines may take, in worker processes of ``vllm_zygote``.
VLLM_STEP_LIMIT: Final = 10


class Zygote:
    """A zygote process with the kinds of ``tests.support.faulty_kinds``."""

    def __init__(
        self, run_dir: Path, preload: str = "tests.support.faulty_kinds,no_such_module", hide: str = ""
    ) -> None:
        self.run_dir = run_dir
        self.preload = preload
        self.hide = hide
        self.socket = run_dir / "zygote.sock"
        self.log = run_dir / "zygote.log"
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "appliance.worker.zygote", "--socket", str(self.socket)]
            self.process = subprocess.Popen(
                [*command, "--preload", self.preload, "--hide", self.hide],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.socket.exists, "the zygote's socket")
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)


def spec(cache: Path, kind: str = "echo", *, concurrency: int = 4, **options: Any) -> LoadSpec:
    """Return a load request; the kinds of ``tests.support.faulty_kinds`` write files to ``cache``."""
    return LoadSpec(
        model=f"test/{kind}",
        version="0" * 64,
        kind=kind,
        options=options,
        weights=None,
        device="cpu",
        memory=1,
        threads=1,
        concurrency=concurrency,
        cache=str(cache),
    )


class Caller:
    """Acts as the gateway for one replica: sends jobs and collects their events."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.events: dict[str, list[Event]] = {}
        self.order: list[str] = []  # ids in the order in which they ended
        self.lost: str | None = None
        self.error: WorkerLost | None = None
        self.taken = MemoryUsage(0)
        self.engine = EngineMetrics()  # the sum of all messages
        self._changed = asyncio.Condition()
        self._task = asyncio.get_running_loop().create_task(self._read())

    async def start(self, id: str, operation: str | None = None, /, **input: Any) -> None:
        """Send a job."""
        self.replica.receive(Commands(jobs=[Job(id, 1, input, operation=operation)]))

    async def cancel(self, id: str) -> None:
        """Cancel a job."""
        self.replica.receive(Commands(cancels=[id]))

    async def done(self, id: str) -> Done:
        """Wait for the end of a prediction and return its last event."""
        await self._until(lambda: id in self.order)
        end = self.events[id][-1]
        assert isinstance(end, Done)
        return end

    async def begun(self, id: str) -> None:
        """Wait for the first event of a prediction."""
        await self._until(lambda: id in self.events)

    async def run(self, id: str, operation: str | None = None, /, **input: Any) -> Done:
        """Send a job and wait for its end."""
        await self.start(id, operation, **input)
        return await self.done(id)

    async def over(self) -> str | None:
        """Wait for the end of all events; return how the worker process was lost, or None."""
        async with asyncio.timeout(PATIENCE):
            await self._task
        return self.lost

    def output(self, id: str) -> list[Any]:
        """Return all output items of a prediction."""
        return [value for event in self.events[id] if isinstance(event, Output) for value in event.values]

    def logs(self, id: str) -> str:
        """Return the logs of a prediction."""
        return "".join(event.text for event in self.events[id] if isinstance(event, Log))

    def metrics(self, id: str) -> dict[str, Any]:
        """Return the metrics of a prediction."""
        return {event.name: event.value for event in self.events[id] if isinstance(event, Metric)}

    async def _until(self, condition: Any) -> None:
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: condition() or self.lost)
        assert condition(), self.lost

    async def _read(self) -> None:
        try:
            async for batch in events_of(self.replica):
                async with self._changed:
                    if isinstance(batch, MemoryUsage):
                        self.taken = batch
                    elif isinstance(batch, EngineMetrics):
                        self.engine.add(batch)
                    else:
                        sent = msgspec.msgpack.encode(batch)
                        for emitted in msgspec.msgpack.decode(sent, type=list[Emitted]):
                            self._take(emitted)
                    self._changed.notify_all()
        except WorkerLost as error:
            async with self._changed:
                self.lost, self.error = error.detail, error
                self._changed.notify_all()

    def _take(self, emitted: Emitted) -> None:
        events = self.events.setdefault(emitted.id, [])
        events.append(emitted.event)
        assert emitted.n == len(events), "numbers have no gaps"
        if isinstance(emitted.event, Done):
            self.order.append(emitted.id)


async def until_gone(*pids: int) -> None:
    """Wait until none of these processes is alive."""
    await until(lambda: not any(map(is_running, pids)))


def cog_spec(home: Path, model: CogModel, kind: str = "cog", **options: Any) -> LoadSpec:
    """Build a Cog project, and return what loads it."""
    folder = project.build(home, model)
    return LoadSpec(
        model=model.name,
        version="0" * 64,
        kind=kind,
        options={"build": str(folder), "environment": {}, **options},
        weights=None,
        device="cpu",
        memory=1,
        threads=1,
        concurrency=project.described(folder)["concurrency"],
        cache=str(home / "cache"),
    )
