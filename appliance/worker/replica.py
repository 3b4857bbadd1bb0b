"""The runner replica without Ray: one engine host at a time, jobs down to it, events up from it.

It outlives gateways: what a prediction has emitted is held until the gateway acknowledges the prediction, so
that the next gateway can subscribe and miss nothing. It never imports a heavy library.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.domain.errors import LoadFailed, OutOfMemory, SleepFailed, WorkerLost
from appliance.domain.prediction import Job
from appliance.machine.process_memory import kernel_kills
from appliance.runners.base import LoadSpec
from appliance.worker import cleanup
from appliance.worker.event_buffer import EventBuffer
from appliance.worker.handle import WorkerHandle
from appliance.worker.memory_monitor import MemoryMonitor, MemoryUsage
from appliance.worker.protocol import (
    Cancel,
    Failed,
    Ready,
    RelayedEvent,
    RelayedEvents,
    Run,
    SleepWorker,
    WakeWorker,
    WorkerAsleep,
    WorkerAwake,
    WorkerEvent,
    WorkerSleepFailed,
)

CLOSE_GRACE: Final = 0.5  # seconds a host gets to close its runner before its group is killed
LOOK: Final = 0.5  # seconds between looks at what a host takes


class LoadReport(msgspec.Struct, frozen=True):
    """How a model was loaded."""

    memory: int  # bytes of main memory of the host and its children, beside what the zygote has
    seconds: float  # from the start of ``setup``; the time to start the process is not in it
    pid: int
    forked: bool  # by the zygote; otherwise it had to import everything itself
    levels: list[int] = []  # of sleep that it is able to


class ReplicaStats(msgspec.Struct, frozen=True):
    """What a replica holds."""

    incarnation: str  # random; another one means that the replica was restarted and knows nothing
    spec: LoadSpec | None  # what is loaded, or was until its host died
    running: list[str]  # prediction ids
    held: list[str]  # all that are not acknowledged, running ones among them
    host: int | None  # process id of the host that is ready
    levels: list[int] = []  # of sleep that it is able to
    level: int | None = None  # of the sleep that it is in
    turning: bool = False  # it is falling asleep, or waking


class _Subscriber:
    """The one reader of ``Replica.events``."""

    def __init__(self, first: list[RelayedEvent]) -> None:
        self.batch = first
        self.wake = asyncio.Event()
        self.taken: MemoryUsage | None = None
        self.ended = False
        self.error: WorkerLost | None = None
        if first:
            self.wake.set()

    def offer(self, events: list[RelayedEvent]) -> None:
        self.batch.extend(events)
        self.wake.set()

    def tell(self, taken: MemoryUsage) -> None:
        self.taken = taken
        self.wake.set()

    def take(self) -> list[list[RelayedEvent] | MemoryUsage]:
        """What came since the last time."""
        news: list[list[RelayedEvent] | MemoryUsage] = []
        if self.batch:
            news.append(self.batch)
        if self.taken is not None:
            news.append(self.taken)
        self.batch, self.taken = [], None
        return news

    def end(self, error: WorkerLost | None = None) -> None:
        self.ended, self.error = True, error
        self.wake.set()


class _LoadedWorker:
    """A host, what it was started with, what it takes and how it ended."""

    def __init__(self, spec: LoadSpec, host: WorkerHandle) -> None:
        self.spec = spec
        self.host = host
        self._gpus = [name for name in spec.device.split(",") if name.startswith("cuda:")]
        self.meter = MemoryMonitor(host.pid, self._gpus, spec.limit)
        self.report: LoadReport | None = None  # once it is ready
        self.gave_up: str | None = None  # what it said when its device had no memory left
        self.lost: WorkerLost | None = None
        self.level: int | None = None  # of the sleep that it is in
        self.turning: asyncio.Future[WorkerAsleep | WorkerAwake | WorkerSleepFailed] | None = None
        self._kills = kernel_kills()

    def loss(self, end: str) -> WorkerLost:
        """Why the host is gone; ``end`` is what its end looked like."""
        called, taken = f"the engine host of {self.spec.model}", self.meter.taken
        if self.meter.over is not None:
            had = self.meter.limit or 0
            return OutOfMemory(
                f"{called} took {self.meter.over:,} bytes of main memory, had {had:,}, and was ended",
                self.meter.over,
            )
        if self.gave_up is not None:
            reason = f"{called} found no memory on {self.spec.device}: {self.gave_up}"
            return OutOfMemory(reason, taken.device)
        if self.host.signal == signal.SIGKILL and kernel_kills() > self._kills:
            reason = f"{called} {end} when the kernel ended processes because main memory was used up"
            return WorkerLost(reason) if self._gpus else OutOfMemory(reason, taken.main or None)
        return WorkerLost(_with_log(f"{called} {end}", self.host))

    def turned(self, message: WorkerAsleep | WorkerAwake | WorkerSleepFailed) -> None:
        """It has fallen asleep, or woken, or failed to."""
        turning, self.turning = self.turning, None
        if isinstance(message, WorkerAwake):
            self.level = None
        if turning is not None and not turning.done():
            turning.set_result(message)


class Replica:
    """Loads one model at a time and relays between its host and the gateway. Lives on one event loop."""

    def __init__(self, name: str, zygote_socket: str, run_dir: str) -> None:
        """``name`` is for people; hosts are marked and logged below ``run_dir``. Nothing runs yet."""
        self.name = name
        self.incarnation = secrets.token_hex(8)
        self._zygote_socket = zygote_socket
        self._run_dir = Path(run_dir)
        self._event_buffer = EventBuffer()
        self._loaded: _LoadedWorker | None = None
        self._loading: tuple[LoadSpec, asyncio.Task[LoadReport]] | None = None
        self._hosted: _LoadedWorker | None = None  # what loads, or is loaded
        self._subscriber: _Subscriber | None = None
        self._watch: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None

    async def load(self, spec: LoadSpec) -> LoadReport:
        """Make ``spec`` ready, in place of what was loaded; nothing happens if it is already.

        Whoever calls with the same ``spec`` while it loads waits for the same load, and a caller that goes
        away does not stop it: ``unload`` does.

        Raises:
            LoadFailed: the model cannot be loaded, or was unloaded meanwhile.
            HostLost: the host died while it loaded.
        """
        loaded = self._loaded
        if loaded is not None and loaded.report and loaded.spec == spec and loaded.lost is None:
            return loaded.report
        while self._loading is None or self._loading[0] != spec:
            await self.unload()
            if self._loading is None:  # otherwise another caller was faster, and is the next to be ended
                self._loading = spec, asyncio.get_running_loop().create_task(self._start(spec))
        task = self._loading[1]
        await asyncio.wait({task})
        if task.cancelled():
            raise LoadFailed(f"{spec.model} was unloaded while it was loading")
        return task.result()

    async def unload(self) -> None:
        """End the host, if there is one; returns once its memory is free. What ran there is forgotten."""
        if self._loading is not None:
            task = self._loading[1]
            task.cancel()
            await asyncio.wait({task})
        loaded, self._loaded = self._loaded, None
        self._event_buffer.forget_running()
        if self._subscriber is not None:
            self._subscriber.end()
        if loaded is not None:
            await loaded.host.kill(grace=CLOSE_GRACE)

    async def sleep(self, level: int) -> int | None:
        """Have the host give its device back; returns how many bytes of it it still holds, if that is known.

        On a GPU the driver says it; elsewhere the runner.

        Raises:
            SleepFailed: it did not.
            HostLost: there is no host, or it died.
        """
        loaded = self._living()
        loaded.level = level
        message = await self._turn(loaded, SleepWorker(level))
        measured = await asyncio.to_thread(loaded.meter.on_device)
        if measured is not None:
            return measured
        return message.left if isinstance(message, WorkerAsleep) else None

    async def wake(self) -> None:
        """Have the host take its device again; returns once it is ready.

        Raises:
            SleepFailed: it did not.
            HostLost: there is no host, or it died.
        """
        await self._turn(self._living(), WakeWorker())

    async def _turn(
        self, loaded: _LoadedWorker, message: SleepWorker | WakeWorker
    ) -> WorkerAsleep | WorkerAwake:
        if loaded.turning is not None:
            raise SleepFailed(f"{loaded.spec.model} is falling asleep or waking already")
        loaded.turning = turning = asyncio.get_running_loop().create_future()
        loaded.host.send(message)
        end = asyncio.ensure_future(loaded.host.wait())
        first: set[asyncio.Future[Any]] = {turning, end}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            end.cancel()
        if not turning.done():
            raise loaded.loss(end.result())
        answer: WorkerAsleep | WorkerAwake | WorkerSleepFailed = turning.result()
        if isinstance(answer, WorkerSleepFailed):
            raise SleepFailed(_with_log(answer.error, loaded.host))
        return answer

    def _living(self) -> _LoadedWorker:
        loaded = self._loaded
        if loaded is None or loaded.lost is not None:
            raise (loaded and loaded.lost) or WorkerLost(f"no model is loaded in {self.name}")
        return loaded

    async def exchange(
        self, jobs: list[Job], cancels: list[str], acknowledged: list[str], limit: int | None = None
    ) -> None:
        """Take what the gateway has for this model. A job that is known already is ignored.

        ``limit`` is what its host may take of main memory from now on, in bytes; None leaves it as it is.

        Raises:
            HostLost: there are jobs and no host to run them.
        """
        self._event_buffer.acknowledge(acknowledged)
        if limit is not None and self._hosted is not None:
            self._hosted.meter.limit = limit
        loaded = self._loaded
        if loaded is None or loaded.lost is not None:
            if jobs:
                raise (loaded and loaded.lost) or WorkerLost(f"no model is loaded in {self.name}")
            return
        fresh = self._event_buffer.admit(jobs)
        if fresh:
            loaded.host.send(Run(fresh))
        if cancels:
            loaded.host.send(Cancel(cancels))

    async def events(self) -> AsyncIterator[list[RelayedEvent] | MemoryUsage]:
        """Everything unacknowledged, then what happens, in batches; ends when the model is unloaded.

        Among them is what the host takes, whenever that is more than before.
        There is one subscriber at a time: a new one ends the one before.

        Raises:
            HostLost: the host died; the message says how, and ends with the last lines of its log. Or there
                is none: the replica was restarted.
        """
        if self._subscriber is not None:
            self._subscriber.end()
        subscriber = self._subscriber = _Subscriber(self._event_buffer.events())
        loaded = self._loaded
        if loaded is None:
            subscriber.end(WorkerLost(f"no model is loaded in {self.name}"))
        else:
            if loaded.meter.taken.main:
                subscriber.tell(loaded.meter.taken)
            if loaded.lost is not None:
                subscriber.end(loaded.lost)
        try:
            while True:
                await subscriber.wake.wait()
                subscriber.wake.clear()
                for news in subscriber.take():
                    yield news
                if subscriber.ended and not subscriber.batch:
                    break
        finally:
            if self._subscriber is subscriber:
                self._subscriber = None
        if subscriber.error is not None:
            raise subscriber.error

    async def stats(self) -> ReplicaStats:
        """What is loaded and held."""
        loaded = self._loaded
        return ReplicaStats(
            incarnation=self.incarnation,
            spec=None if loaded is None else loaded.spec,
            running=self._event_buffer.running,
            held=self._event_buffer.ids,
            host=None if loaded is None or loaded.lost is not None else loaded.host.pid,
            levels=[] if loaded is None or loaded.report is None else loaded.report.levels,
            level=None if loaded is None else loaded.level,
            turning=loaded is not None and loaded.turning is not None,
        )

    async def _start(self, spec: LoadSpec) -> LoadReport:
        """Start a host and wait until it is ready."""
        answer: asyncio.Future[Ready | Failed] = asyncio.get_running_loop().create_future()
        hosted: _LoadedWorker | None = None

        def receive(message: WorkerEvent) -> None:
            if isinstance(message, RelayedEvents):
                if self._loaded is not None and self._loaded is hosted:
                    self._relay(message.events)
            elif isinstance(message, WorkerAsleep | WorkerAwake | WorkerSleepFailed):
                if hosted is not None:
                    hosted.turned(message)
            elif not answer.done():
                answer.set_result(message)
            elif isinstance(message, Failed) and hosted is not None:
                hosted.gave_up = message.error

        log = self._run_dir / "logs" / f"{spec.model.replace('/', '--')}.log"
        try:
            host = await WorkerHandle.start(
                self._zygote_socket, spec, log=log, marks=cleanup.folder(self._run_dir), receive=receive
            )
            hosted = self._hosted = _LoadedWorker(spec, host)
            self._watch = asyncio.get_running_loop().create_task(self._follow(hosted))
            ready = await self._first_answer(hosted, answer)
            hosted.report = LoadReport(ready.memory, ready.seconds, host.pid, host.forked, ready.levels)
            hosted.meter.ready()
            self._loaded = hosted
            return hosted.report
        finally:
            if hosted is not None and hosted.report is None:
                await hosted.host.kill()
            self._loading = None

    async def _first_answer(self, hosted: _LoadedWorker, answer: asyncio.Future[Ready | Failed]) -> Ready:
        end = asyncio.ensure_future(hosted.host.wait())
        first: set[asyncio.Future[Any]] = {answer, end}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise hosted.loss(f"{end.result()} while it loaded")
        end.cancel()
        message = answer.result()
        if isinstance(message, Failed):
            if message.out_of_memory:
                hosted.gave_up = message.error
                raise hosted.loss("ended")
            raise LoadFailed(_with_log(message.error, hosted.host))
        return message

    async def _follow(self, hosted: _LoadedWorker) -> None:
        """Measure the host until it is gone, end it if it takes too much, and say how it ended."""
        end = asyncio.ensure_future(hosted.host.wait())
        while not (await asyncio.wait({end}, timeout=LOOK))[0]:
            news = await asyncio.to_thread(hosted.meter.look)
            if hosted.meter.over is not None:
                await hosted.host.kill()
            elif news and self._loaded is hosted and self._subscriber is not None:
                self._subscriber.tell(hosted.meter.taken)
        if self._loaded is not hosted:  # it was unloaded, or never ready: nobody wants to know
            return
        hosted.lost = hosted.loss(end.result())
        if self._subscriber is not None:
            self._subscriber.end(hosted.lost)

    def _relay(self, events: list[RelayedEvent]) -> None:
        kept = self._event_buffer.record(events, time.monotonic())
        if kept and self._subscriber is not None:
            self._subscriber.offer(kept)


def _with_log(sentence: str, host: WorkerHandle) -> str:
    """``sentence``, and below it what the host logged last."""
    tail = host.log_tail()
    return f"{sentence}\nThe last lines of its log:\n{tail}" if tail else sentence
