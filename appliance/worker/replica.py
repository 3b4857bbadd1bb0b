"""The runner replica without Ray: runs one worker process at a time, sends it jobs and relays its events.

A replica outlives gateways. The replica keeps the events of a prediction until a gateway acknowledges the
prediction, so the next gateway gets all of them. This module imports no heavy library.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import LoadFailed, OutOfMemory, SleepFailed, WorkerLost
from appliance.domain.units import readable_bytes
from appliance.machine.process_memory import kernel_kills
from appliance.runners.base import LoadSpec, Part
from appliance.worker import model_logs
from appliance.worker.cleanup import pid_folder
from appliance.worker.event_buffer import EventBuffer
from appliance.worker.handle import WorkerHandle
from appliance.worker.memory_monitor import MemoryMonitor
from appliance.worker.protocol import (
    Cancel,
    Commands,
    DirectAttached,
    Failure,
    PeakMemory,
    RelayedEvents,
    Run,
    SleepWorker,
    StreamEnd,
    ToGateway,
    WakeWorker,
    WorkerAsleep,
    WorkerAwake,
    WorkerEvent,
    WorkerFailed,
    WorkerReady,
    WorkerSleepFailed,
)

CLOSE_GRACE: Final = 0.5  # seconds that a worker process gets to close its runner before it is killed
MEASURE_INTERVAL: Final = 0.5  # seconds between measurements of the memory of a worker process


def worker_socket(run_dir: Path, replica: str) -> Path:
    """Return the path where the worker process of a replica listens for the gateway."""
    return run_dir / f"{replica}-worker.sock"


class LoadReport(msgspec.Struct, frozen=True):
    """How a model was loaded."""

    pid: int
    forked: bool  # by the zygote; otherwise the process imported the libraries itself
    levels: list[int] = []  # sleep levels that the model supports


class ReplicaStats(msgspec.Struct, frozen=True):
    """The loaded model and the predictions that a replica holds."""

    spec: LoadSpec | None  # the loaded model, or the one whose worker process has died
    running: list[str]  # prediction ids
    held: list[str]  # ids of all predictions that are not acknowledged, running or not
    pid: int | None  # process id of the worker process that is ready
    levels: list[int] = []  # sleep levels that the model supports
    level: int | None = None  # the sleep level that it is in; None if it is awake
    changing_sleep_state: bool = False  # it is falling asleep or waking
    part: Part | None = None  # of a model on several machines, of which ``spec`` has all devices
    copies: list[str] = []  # paths on a joined node that were copied for the model from the head


class _LoadedWorker:
    """A worker process with its model, its memory use and the reason of its end."""

    def __init__(self, spec: LoadSpec, handle: WorkerHandle) -> None:
        self.spec = spec
        self.handle = handle
        self._gpus = [name for name in spec.device.split(",") if name.startswith("cuda:")]
        self.memory_monitor = MemoryMonitor(handle.pid, self._gpus, spec.limit)
        self.report: LoadReport | None = None  # once it is ready
        self.oom: str | None = None  # its error message when the memory of its device was used up
        self.lost: WorkerLost | None = None
        self.level: int | None = None  # the sleep level that it is in
        self.changing_sleep_state: asyncio.Future[WorkerAsleep | WorkerAwake | WorkerSleepFailed] | None = (
            None
        )
        self._kills = kernel_kills()

    def loss(self, end: str) -> WorkerLost:
        """Return the error of a dead worker process; ``end`` is the result of ``WorkerHandle.wait``."""
        worker, peak = f"the worker process of {self.spec.model}", self.memory_monitor.peak
        if self.memory_monitor.over is not None:
            over, limit = self.memory_monitor.over, self.memory_monitor.limit or 0
            used = f"used {readable_bytes(over)} of main memory with a limit of {readable_bytes(limit)}"
            return OutOfMemory(f"{worker} {used}, and was killed", over)
        if self.oom is not None:
            return OutOfMemory(f"{worker} ran out of memory on {self.spec.device}: {self.oom}", peak.device)
        if self.handle.exit_code == -signal.SIGKILL and kernel_kills() > self._kills:
            reason = f"{worker} {end} when the kernel killed processes because main memory was used up"
            return WorkerLost(reason) if self._gpus else OutOfMemory(reason, peak.main or None)
        return WorkerLost(_with_log(f"{worker} {end}", self.handle))

    def sleep_state_changed(self, message: WorkerAsleep | WorkerAwake | WorkerSleepFailed) -> None:
        change, self.changing_sleep_state = self.changing_sleep_state, None
        if isinstance(message, WorkerAwake):
            self.level = None
        if change is not None and not change.done():
            change.set_result(message)


class Replica:
    """Loads one model at a time and relays between its worker process and the gateway, on one event loop."""

    def __init__(self, name: str, zygote_socket: str, run_dir: str) -> None:
        """``name`` is for error messages; ``run_dir`` has the pid files and logs of worker processes."""
        self.name = name
        self._zygote_socket = zygote_socket
        self._run_dir = Path(run_dir)
        self._event_buffer = EventBuffer()
        self._loaded: _LoadedWorker | None = None
        self._loading: tuple[LoadSpec, asyncio.Task[LoadReport]] | None = None
        self._worker: _LoadedWorker | None = None  # loading or loaded
        self._send: Callable[[ToGateway], None] | None = None  # to the gateway that reads the events
        self._relays = True  # that gateway does not get the events from the worker process itself
        self._direct: DirectAttached | None = None  # the last one, for a gateway that attaches later
        self._watch: asyncio.Task[None] | None = None

    async def load(self, spec: LoadSpec) -> LoadReport:
        """Load a model in place of the former model; do nothing if the model is already loaded.

        A second call with the same ``spec`` waits for the same load. Cancelling a call does not stop the
        load; ``unload`` does.

        Raises:
            LoadFailed: the model cannot be loaded, or was unloaded during the load.
            WorkerLost: the worker process died while it loaded the model.
        """
        loaded = self._loaded
        if loaded is not None and loaded.report and loaded.spec == spec and loaded.lost is None:
            return loaded.report
        while self._loading is None or self._loading[0] != spec:
            await self.unload()
            if self._loading is None:  # otherwise another call has started a load meanwhile: unload again
                self._loading = spec, asyncio.get_running_loop().create_task(self._start(spec))
        task = self._loading[1]
        await asyncio.wait({task})
        if task.cancelled():
            raise LoadFailed(f"model {spec.model} was unloaded during its load")
        return task.result()

    async def unload(self) -> None:
        """End the worker process, if any; return once its memory is free. Its predictions are dropped.

        Events of finished predictions are dropped too, because the reader of the next model's events would
        get them. If their end is not stored yet, a gateway that starts later handles these predictions as
        after the death of a worker process.
        """
        if self._loading is not None:
            task = self._loading[1]
            task.cancel()
            await asyncio.wait({task})
        loaded, self._loaded = self._loaded, None
        self._direct = None
        self._event_buffer.clear()
        self._end_stream()
        if loaded is not None:
            await loaded.handle.kill(grace=CLOSE_GRACE)

    async def sleep(self, level: int) -> int | None:
        """Put the model to sleep; return the bytes of device memory that it still uses, None if unknown.

        Memory is measured on a GPU; on other devices the runner reports it.

        Raises:
            SleepFailed: the model could not fall asleep.
            WorkerLost: there is no worker process, or it died.
        """
        loaded = self._live_worker()
        loaded.level = level
        message = await self._change_sleep_state(loaded, SleepWorker(level))
        measured = await asyncio.to_thread(loaded.memory_monitor.gpu_memory)
        if measured is not None:
            return measured
        return message.left if isinstance(message, WorkerAsleep) else None

    async def wake(self) -> None:
        """Wake the model; return once it is ready.

        Raises:
            SleepFailed: the model could not wake.
            WorkerLost: there is no worker process, or it died.
        """
        await self._change_sleep_state(self._live_worker(), WakeWorker())

    async def _change_sleep_state(
        self, loaded: _LoadedWorker, message: SleepWorker | WakeWorker
    ) -> WorkerAsleep | WorkerAwake:
        if loaded.changing_sleep_state is not None:
            raise SleepFailed(f"model {loaded.spec.model} is already falling asleep or waking")
        loaded.changing_sleep_state = change = asyncio.get_running_loop().create_future()
        loaded.handle.send(message)
        end = asyncio.ensure_future(loaded.handle.wait())
        first: set[asyncio.Future[Any]] = {change, end}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            end.cancel()
        if not change.done():
            raise loaded.loss(end.result())
        answer: WorkerAsleep | WorkerAwake | WorkerSleepFailed = change.result()
        if isinstance(answer, WorkerSleepFailed):
            raise SleepFailed(_with_log(answer.error, loaded.handle))
        return answer

    def _live_worker(self) -> _LoadedWorker:
        if self._loaded is None:
            raise WorkerLost(f"no model is loaded in runner replica {self.name}")
        if self._loaded.lost is not None:
            raise self._loaded.lost
        return self._loaded

    def receive(self, commands: Commands) -> None:
        """Carry out commands of the gateway; ignore jobs if the worker process has died."""
        self._event_buffer.acknowledge(commands.acknowledged)
        if commands.limit is not None and self._worker is not None:
            self._worker.memory_monitor.limit = commands.limit
        loaded = self._loaded
        if loaded is None or loaded.lost is not None:
            return
        if commands.direct:
            self._relays = False
        new = [job for job in commands.jobs if self._event_buffer.admit(job.id, job.attempt)]
        if new:
            loaded.handle.send(Run(new))
        if commands.cancels:
            loaded.handle.send(Cancel(commands.cancels))

    def attach(self, send: Callable[[ToGateway], None]) -> None:
        """Call ``send`` with unacknowledged events, then with new messages, at last with ``StreamEnd``.

        The first new message may be a ``DirectAttached`` that arrived before.

        The stream ends when the model is unloaded, when the worker process dies, or when another caller
        attaches. The error of a dead worker process ends with the last lines of its log.
        """
        self._end_stream()
        self._send = send
        self._relays = True
        if events := self._event_buffer.events():
            send(RelayedEvents(events))
        if self._direct is not None:  # the worker process may have accepted this gateway before
            send(self._direct)
        loaded = self._loaded
        if loaded is None:
            self._end_stream(WorkerLost(f"no model is loaded in runner replica {self.name}"))
            return
        if loaded.memory_monitor.peak.main:
            send(PeakMemory(loaded.memory_monitor.peak))
        if loaded.lost is not None:
            self._end_stream(loaded.lost)

    def detach(self, send: Callable[[ToGateway], None]) -> None:
        """Stop calling ``send``, because its connection has closed."""
        if self._send == send:
            self._send = None

    def _end_stream(self, error: WorkerLost | None = None) -> None:
        send, self._send = self._send, None
        if send is not None:
            send(StreamEnd(None if error is None else Failure.of(error)))

    async def stats(self) -> ReplicaStats:
        loaded = self._loaded
        return ReplicaStats(
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
        answer: asyncio.Future[WorkerReady | WorkerFailed] = asyncio.get_running_loop().create_future()
        worker: _LoadedWorker | None = None

        def receive(message: WorkerEvent) -> None:
            if isinstance(message, RelayedEvents | DirectAttached | EngineMetrics):
                if self._loaded is not None and self._loaded is worker:
                    self._relay(message)
            elif isinstance(message, WorkerAsleep | WorkerAwake | WorkerSleepFailed):
                if worker is not None:
                    worker.sleep_state_changed(message)
            elif not answer.done():
                answer.set_result(message)
            elif isinstance(message, WorkerFailed) and worker is not None:
                worker.oom = message.error

        log = model_logs.log_file(self._run_dir, spec.model)
        try:
            handle = await WorkerHandle.start(
                self._zygote_socket,
                spec,
                log=log,
                pid_files=pid_folder(self._run_dir),
                socket_path=worker_socket(self._run_dir, self.name),
                receive=receive,
            )
            worker = self._worker = _LoadedWorker(spec, handle)
            self._watch = asyncio.get_running_loop().create_task(self._follow(worker))
            ready = await self._first_answer(worker, answer)
            worker.report = LoadReport(handle.pid, handle.forked, ready.levels)
            worker.memory_monitor.ready()
            self._loaded = worker
            return worker.report
        finally:
            if worker is not None and worker.report is None:
                await worker.handle.kill()
            self._loading = None

    async def _first_answer(
        self, worker: _LoadedWorker, answer: asyncio.Future[WorkerReady | WorkerFailed]
    ) -> WorkerReady:
        end = asyncio.ensure_future(worker.handle.wait())
        first: set[asyncio.Future[Any]] = {answer, end}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise worker.loss(f"{end.result()} while it loaded the model")
        end.cancel()
        message = answer.result()
        if isinstance(message, WorkerFailed):
            if message.out_of_memory:
                worker.oom = message.error
                raise worker.loss("ended")
            raise LoadFailed(_with_log(message.error, worker.handle))
        return message

    async def _follow(self, worker: _LoadedWorker) -> None:
        """Monitor the worker process until its end; kill it over its memory limit; report the end."""
        end = asyncio.ensure_future(worker.handle.wait())
        while not (await asyncio.wait({end}, timeout=MEASURE_INTERVAL))[0]:
            new_peak = await asyncio.to_thread(worker.memory_monitor.measure)
            if worker.memory_monitor.over is not None:
                await worker.handle.kill()
            elif new_peak and self._loaded is worker and self._send is not None:
                self._send(PeakMemory(worker.memory_monitor.peak))
        if self._loaded is not worker:  # it was unloaded or never ready
            return
        worker.lost = worker.loss(end.result())
        self._end_stream(worker.lost)

    def _relay(self, message: RelayedEvents | DirectAttached | EngineMetrics) -> None:
        if isinstance(message, DirectAttached):
            self._direct = message
        if not isinstance(message, RelayedEvents):
            if self._send is not None:
                self._send(message)
            return
        for id, attempt in message.received:
            self._event_buffer.admit(id, attempt)
        kept = self._event_buffer.record(message.events, time.monotonic())
        if kept and self._send is not None and self._relays:
            self._send(RelayedEvents(kept))


def _with_log(sentence: str, handle: WorkerHandle) -> str:
    """Append the last lines of the worker process's log to a message."""
    tail = handle.log_tail()
    return f"{sentence}\nThe last lines of its log:\n{tail}" if tail else sentence
