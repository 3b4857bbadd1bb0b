"""The runner replica without Ray: one worker process at a time, jobs down to it, events up from it.

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

CLOSE_GRACE: Final = 0.5  # seconds a worker process gets to close its runner before its group is killed
LOOK: Final = 0.5  # seconds between looks at what a worker process takes


class LoadReport(msgspec.Struct, frozen=True):
    """How a model was loaded."""

    memory: int  # bytes of main memory of the worker process and its children, beside what the zygote has
    seconds: float  # from the start of ``setup``; the time to start the process is not in it
    pid: int
    forked: bool  # by the zygote; otherwise it had to import everything itself
    levels: list[int] = []  # of sleep that it is able to


class ReplicaStats(msgspec.Struct, frozen=True):
    """The loaded model and the predictions that a replica holds."""

    incarnation: str  # random; another one means that the replica was restarted and knows nothing
    spec: LoadSpec | None  # what is loaded, or was until its worker process died
    running: list[str]  # prediction ids
    held: list[str]  # all that are not acknowledged, running ones among them
    pid: int | None  # process id of the worker process that is ready
    levels: list[int] = []  # of sleep that it is able to
    level: int | None = None  # of the sleep that it is in
    changing_sleep_state: bool = False  # it is falling asleep, or waking


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
        """Return the events since the last call."""
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
    """A worker process, what it was started with, what it takes and how it ended."""

    def __init__(self, spec: LoadSpec, handle: WorkerHandle) -> None:
        self.spec = spec
        self.handle = handle
        self._gpus = [name for name in spec.device.split(",") if name.startswith("cuda:")]
        self.memory_monitor = MemoryMonitor(handle.pid, self._gpus, spec.limit)
        self.report: LoadReport | None = None  # once it is ready
        self.gave_up: str | None = None  # what it said when its device had no memory left
        self.lost: WorkerLost | None = None
        self.level: int | None = None  # of the sleep that it is in
        self.changing_sleep_state: asyncio.Future[WorkerAsleep | WorkerAwake | WorkerSleepFailed] | None = (
            None
        )
        self._kills = kernel_kills()

    def loss(self, end: str) -> WorkerLost:
        """Why the worker process is gone; ``end`` is what its end looked like."""
        called, taken = f"the worker process of {self.spec.model}", self.memory_monitor.taken
        if self.memory_monitor.over is not None:
            over, had = self.memory_monitor.over, self.memory_monitor.limit or 0
            return OutOfMemory(
                f"{called} took {over:,} bytes of main memory, had {had:,}, and was ended", over
            )
        if self.gave_up is not None:
            reason = f"{called} found no memory on {self.spec.device}: {self.gave_up}"
            return OutOfMemory(reason, taken.device)
        if self.handle.signal == signal.SIGKILL and kernel_kills() > self._kills:
            reason = f"{called} {end} when the kernel ended processes because main memory was used up"
            return WorkerLost(reason) if self._gpus else OutOfMemory(reason, taken.main or None)
        return WorkerLost(_with_log(f"{called} {end}", self.handle))

    def sleep_state_changed(self, message: WorkerAsleep | WorkerAwake | WorkerSleepFailed) -> None:
        """It has fallen asleep, or woken, or failed to."""
        changing_sleep_state, self.changing_sleep_state = self.changing_sleep_state, None
        if isinstance(message, WorkerAwake):
            self.level = None
        if changing_sleep_state is not None and not changing_sleep_state.done():
            changing_sleep_state.set_result(message)


class Replica:
    """Load one model at a time and relay between its worker process and the gateway, on one event loop."""

    def __init__(self, name: str, zygote_socket: str, run_dir: str) -> None:
        """``name`` is for people; ``run_dir`` holds the pid files and logs of worker processes."""
        self.name = name
        self.incarnation = secrets.token_hex(8)
        self._zygote_socket = zygote_socket
        self._run_dir = Path(run_dir)
        self._event_buffer = EventBuffer()
        self._loaded: _LoadedWorker | None = None
        self._loading: tuple[LoadSpec, asyncio.Task[LoadReport]] | None = None
        self._worker: _LoadedWorker | None = None  # what loads, or is loaded
        self._subscriber: _Subscriber | None = None
        self._watch: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None

    async def load(self, spec: LoadSpec) -> LoadReport:
        """Make ``spec`` ready, in place of what was loaded; nothing happens if it is already.

        Whoever calls with the same ``spec`` while it loads waits for the same load, and a caller that goes
        away does not stop it: ``unload`` does.

        Raises:
            LoadFailed: the model cannot be loaded, or was unloaded meanwhile.
            WorkerLost: the worker process died while it loaded.
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
        """End the worker process, if any, and return once its memory is free. Its predictions are dropped."""
        if self._loading is not None:
            task = self._loading[1]
            task.cancel()
            await asyncio.wait({task})
        loaded, self._loaded = self._loaded, None
        self._event_buffer.forget_running()
        if self._subscriber is not None:
            self._subscriber.end()
        if loaded is not None:
            await loaded.handle.kill(grace=CLOSE_GRACE)

    async def sleep(self, level: int) -> int | None:
        """Put the model to sleep; returns the bytes of its device that it still holds, if that is known.

        On a GPU the GPU's driver reports them; elsewhere the runner does.

        Raises:
            SleepFailed: it did not.
            WorkerLost: there is no worker process, or it died.
        """
        loaded = self._living()
        loaded.level = level
        message = await self._change_sleep_state(loaded, SleepWorker(level))
        measured = await asyncio.to_thread(loaded.memory_monitor.on_device)
        if measured is not None:
            return measured
        return message.left if isinstance(message, WorkerAsleep) else None

    async def wake(self) -> None:
        """Have the worker process take its device again; returns once it is ready.

        Raises:
            SleepFailed: it did not.
            WorkerLost: there is no worker process, or it died.
        """
        await self._change_sleep_state(self._living(), WakeWorker())

    async def _change_sleep_state(
        self, loaded: _LoadedWorker, message: SleepWorker | WakeWorker
    ) -> WorkerAsleep | WorkerAwake:
        if loaded.changing_sleep_state is not None:
            raise SleepFailed(f"{loaded.spec.model} is falling asleep or waking already")
        loaded.changing_sleep_state = changing_sleep_state = asyncio.get_running_loop().create_future()
        loaded.handle.send(message)
        end = asyncio.ensure_future(loaded.handle.wait())
        first: set[asyncio.Future[Any]] = {changing_sleep_state, end}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            end.cancel()
        if not changing_sleep_state.done():
            raise loaded.loss(end.result())
        answer: WorkerAsleep | WorkerAwake | WorkerSleepFailed = changing_sleep_state.result()
        if isinstance(answer, WorkerSleepFailed):
            raise SleepFailed(_with_log(answer.error, loaded.handle))
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

        ``limit`` is the new limit of its worker process, in bytes of main memory; None changes nothing.

        Raises:
            WorkerLost: there are jobs and no worker process to run them.
        """
        self._event_buffer.acknowledge(acknowledged)
        if limit is not None and self._worker is not None:
            self._worker.memory_monitor.limit = limit
        loaded = self._loaded
        if loaded is None or loaded.lost is not None:
            if jobs:
                raise (loaded and loaded.lost) or WorkerLost(f"no model is loaded in {self.name}")
            return
        fresh = self._event_buffer.admit(jobs)
        if fresh:
            loaded.handle.send(Run(fresh))
        if cancels:
            loaded.handle.send(Cancel(cancels))

    async def events(self) -> AsyncIterator[list[RelayedEvent] | MemoryUsage]:
        """Everything unacknowledged, then what happens, in batches; ends when the model is unloaded.

        Among them is what the worker process takes, whenever that is more than before.
        There is one subscriber at a time: a new one ends the one before.

        Raises:
            WorkerLost: the worker process died; the message says how and ends with the last lines of its
                log. Or there is none, because the replica was restarted.
        """
        if self._subscriber is not None:
            self._subscriber.end()
        subscriber = self._subscriber = _Subscriber(self._event_buffer.events())
        loaded = self._loaded
        if loaded is None:
            subscriber.end(WorkerLost(f"no model is loaded in {self.name}"))
        else:
            if loaded.memory_monitor.taken.main:
                subscriber.tell(loaded.memory_monitor.taken)
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
        """Return the loaded model and the predictions that this replica holds."""
        loaded = self._loaded
        return ReplicaStats(
            incarnation=self.incarnation,
            spec=None if loaded is None else loaded.spec,
            running=self._event_buffer.running,
            held=self._event_buffer.ids,
            pid=None if loaded is None or loaded.lost is not None else loaded.handle.pid,
            levels=[] if loaded is None or loaded.report is None else loaded.report.levels,
            level=None if loaded is None else loaded.level,
            changing_sleep_state=loaded is not None and loaded.changing_sleep_state is not None,
        )

    async def _start(self, spec: LoadSpec) -> LoadReport:
        """Start a worker process and wait until it is ready."""
        answer: asyncio.Future[Ready | Failed] = asyncio.get_running_loop().create_future()
        worker: _LoadedWorker | None = None

        def receive(message: WorkerEvent) -> None:
            if isinstance(message, RelayedEvents):
                if self._loaded is not None and self._loaded is worker:
                    self._relay(message.events)
            elif isinstance(message, WorkerAsleep | WorkerAwake | WorkerSleepFailed):
                if worker is not None:
                    worker.sleep_state_changed(message)
            elif not answer.done():
                answer.set_result(message)
            elif isinstance(message, Failed) and worker is not None:
                worker.gave_up = message.error

        log = self._run_dir / "logs" / f"{spec.model.replace('/', '--')}.log"
        try:
            handle = await WorkerHandle.start(
                self._zygote_socket, spec, log=log, pid_files=cleanup.folder(self._run_dir), receive=receive
            )
            worker = self._worker = _LoadedWorker(spec, handle)
            self._watch = asyncio.get_running_loop().create_task(self._follow(worker))
            ready = await self._first_answer(worker, answer)
            worker.report = LoadReport(ready.memory, ready.seconds, handle.pid, handle.forked, ready.levels)
            worker.memory_monitor.ready()
            self._loaded = worker
            return worker.report
        finally:
            if worker is not None and worker.report is None:
                await worker.handle.kill()
            self._loading = None

    async def _first_answer(self, worker: _LoadedWorker, answer: asyncio.Future[Ready | Failed]) -> Ready:
        end = asyncio.ensure_future(worker.handle.wait())
        first: set[asyncio.Future[Any]] = {answer, end}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise worker.loss(f"{end.result()} while it loaded")
        end.cancel()
        message = answer.result()
        if isinstance(message, Failed):
            if message.out_of_memory:
                worker.gave_up = message.error
                raise worker.loss("ended")
            raise LoadFailed(_with_log(message.error, worker.handle))
        return message

    async def _follow(self, worker: _LoadedWorker) -> None:
        """Measure the worker process until it is gone, end it if it takes too much, and say how it ended."""
        end = asyncio.ensure_future(worker.handle.wait())
        while not (await asyncio.wait({end}, timeout=LOOK))[0]:
            news = await asyncio.to_thread(worker.memory_monitor.look)
            if worker.memory_monitor.over is not None:
                await worker.handle.kill()
            elif news and self._loaded is worker and self._subscriber is not None:
                self._subscriber.tell(worker.memory_monitor.taken)
        if self._loaded is not worker:  # it was unloaded, or never ready: nobody wants to know
            return
        worker.lost = worker.loss(end.result())
        if self._subscriber is not None:
            self._subscriber.end(worker.lost)

    def _relay(self, events: list[RelayedEvent]) -> None:
        kept = self._event_buffer.record(events, time.monotonic())
        if kept and self._subscriber is not None:
            self._subscriber.offer(kept)


def _with_log(sentence: str, handle: WorkerHandle) -> str:
    """``sentence``, and below it what the worker process logged last."""
    tail = handle.log_tail()
    return f"{sentence}\nThe last lines of its log:\n{tail}" if tail else sentence
