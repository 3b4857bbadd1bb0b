"""The life of a worker process: load the model, run predictions, exit when the runner replica ends.

Each prediction is a task on one event loop. The worker process leads a process group with its children. When
the worker process exits, the zygote (or the replica, if there is no zygote) kills the group. When the replica
ends, the worker process kills the group.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Final, NoReturn, TextIO, cast

import msgspec
import uvloop

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.prediction import Done, Job, Log, Metric, Output
from appliance.machine import landlock
from appliance.observability import logs
from appliance.runners import runner_class
from appliance.runners.base import LoadSpec, ReportsMetrics, Runner, Sleeper
from appliance.worker import cleanup, protocol
from appliance.worker.process import capture, output_files
from appliance.worker.process.event_sender import EventSender, EventStream
from appliance.worker.process.gateway_connection import listen
from appliance.worker.process.gpu_oom import out_of_memory
from appliance.worker.protocol import (
    Cancel,
    Fork,
    Run,
    SleepWorker,
    Stop,
    WakeWorker,
    WorkerAsleep,
    WorkerAwake,
    WorkerCommand,
    WorkerFailed,
    WorkerReady,
    WorkerSleepFailed,
)

_log = logging.getLogger(__name__)

_MEASURE_INTERVAL: Final = 1.0  # seconds between two messages with the metrics of an inference engine
_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def environment(spec: LoadSpec) -> dict[str, str]:
    """Return the environment variables that set the number of threads and the GPUs of a worker process.

    Libraries that the zygote has imported do not read these variables again, so runners also set the number
    of threads with functions of their library.
    """
    indexes = [name.removeprefix("cuda:") for name in spec.device.split(",") if name.startswith("cuda:")]
    return {
        **{name: str(spec.threads) for name in _THREAD_VARIABLES},
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # number GPUs as NVML does
        "CUDA_VISIBLE_DEVICES": ",".join(indexes),
    }


class WorkerProcess(asyncio.Protocol):
    """The worker process's connection to its replica, and the predictions that it runs."""

    def __init__(self, spec: LoadSpec, log_file: TextIO, orphaned: Callable[[], object]) -> None:
        """``orphaned`` is called when the replica has ended."""
        self._spec = spec
        self._log_file = log_file
        self._orphaned = orphaned
        self._reader: protocol.MessageReader[WorkerCommand] = protocol.MessageReader(
            msgspec.msgpack.Decoder(WorkerCommand)
        )
        self._runner: Runner | None = None
        self._measured: ReportsMetrics | None = None  # the runner, if its engine reports metrics
        self._waiting: deque[Job] = deque()
        self._running: dict[tuple[str, int], asyncio.Task[None]] = {}  # by id and attempt
        self._attempts: dict[str, int] = {}  # the latest attempt of each id that waits or runs
        self._awake = True  # False from the start of falling asleep until the end of waking
        self._changing_sleep_state: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self.sender: EventSender
        self._closing = False
        self.stopped = (
            asyncio.Event()
        )  # set when the replica has sent ``Stop``, or the device is out of memory
        self.out_of_memory: str | None = None  # the error message, if the device is out of memory
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses
        self.sender = EventSender(self._transport.write)

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            match message:
                case Run(jobs):
                    self.start(jobs)
                case Cancel(ids):
                    self.cancel(ids)
                case SleepWorker(level):
                    self._changing_sleep_state = asyncio.get_running_loop().create_task(self._sleep(level))
                case WakeWorker():
                    self._changing_sleep_state = asyncio.get_running_loop().create_task(self._wake())
                case Stop():
                    self.stopped.set()

    def pause_writing(self) -> None:
        self.sender.pause()

    def resume_writing(self) -> None:
        self.sender.resume()

    def connection_lost(self, _: Exception | None) -> None:
        self._closed.set()
        if not self._closing:
            self._orphaned()

    def ready(self, runner: Runner, message: WorkerReady) -> None:
        self._runner = runner
        self._measured = runner if isinstance(runner, ReportsMetrics) else None
        self._send(message)
        self._start_waiting()

    async def measure(self) -> None:
        """Send the metrics of the runner's engine every second; return at once if it has none."""
        while self._measured is not None:
            self._send_metrics()
            await asyncio.sleep(_MEASURE_INTERVAL)

    def _send_metrics(self) -> None:
        if self._measured is not None and (metrics := self._measured.take_metrics()) is not None:
            self._send(metrics)

    async def close(self, last: WorkerFailed | None = None) -> None:
        self._closing = True
        if last is not None:
            self._send(last)
        self._transport.close()
        await self._closed.wait()

    def start(self, jobs: list[Job]) -> None:
        """Run predictions, in order, as soon as the model has a free slot.

        A later attempt replaces an earlier one. Jobs may also come from the connection of a gateway that has
        died, after the next gateway has sent a later attempt.
        """
        for job in jobs:
            known = self._attempts.get(job.id)
            if known is not None and known >= job.attempt:
                continue
            if known is not None:
                self.cancel([job.id])
            self._attempts[job.id] = job.attempt
            self._waiting.append(job)
        self._start_waiting()

    def _start_waiting(self) -> None:
        runner = self._runner
        if runner is None or not self._awake:
            return
        while self._waiting and len(self._running) < self._spec.concurrency:
            job = self._waiting.popleft()
            stream = EventStream(job, self.sender)
            work = _predict(runner, job, stream, self._log_file, self._end_out_of_memory)
            task = asyncio.get_running_loop().create_task(work)
            self._running[job.id, job.attempt] = task
            task.add_done_callback(partial(self._ended, job, stream))

    def _end_out_of_memory(self, reason: str) -> None:
        """Exit, because a new worker process with more device memory can run the predictions again."""
        self.out_of_memory = self.out_of_memory or reason
        self.stopped.set()

    def _ended(self, job: Job, stream: EventStream, task: asyncio.Task[None]) -> None:
        del self._running[job.id, job.attempt]
        self._forget(job)
        if not stream.done and self.out_of_memory is None:
            if task.cancelled():  # before its first step
                stream.emit(Done("canceled"))
            else:
                stream.emit(
                    Done("failed", f"the worker process could not report the result: {task.exception()!r}")
                )
        self._start_waiting()
        if not self._running:  # the model may be unloaded before the next message is due
            self._send_metrics()

    def _forget(self, job: Job) -> None:
        if self._attempts.get(job.id) == job.attempt:
            del self._attempts[job.id]

    async def _sleep(self, level: int) -> None:
        runner, predictions = self._runner, len(self._running) + len(self._waiting)
        if runner is None or not isinstance(runner, Sleeper) or level not in runner.levels:
            self._sleep_failed(f"does not support sleep level {level}")
        elif predictions:
            self._sleep_failed(f"cannot sleep while {predictions} predictions run or wait")
        else:
            self._awake = False
            try:
                left = await runner.sleep(level)
            except Exception as error:  # noqa: BLE001  # libraries raise any error; the replica then kills this process
                traceback.print_exc()
                self._sleep_failed(f"could not fall asleep: {_message(error)}")
            else:
                self._send(WorkerAsleep(left))

    async def _wake(self) -> None:
        runner = self._runner
        try:
            if runner is not None and isinstance(runner, Sleeper) and not self._awake:
                await runner.wake()
        except Exception as error:  # noqa: BLE001  # as in ``_sleep``
            traceback.print_exc()
            self._sleep_failed(f"could not wake: {_message(error)}")
            return
        self._awake = True
        self._send(WorkerAwake())
        self._start_waiting()

    def _send(self, message: msgspec.Struct) -> None:
        self._transport.write(protocol.encode(message))

    def _sleep_failed(self, reason: str) -> None:
        self._send(WorkerSleepFailed(f"{self._spec.model} {reason}"))

    def cancel(self, ids: list[str]) -> None:
        for id in ids:
            task = self._running.get((id, self._attempts.get(id, 0)))
            if task is not None:
                task.cancel()
        canceled = [job for job in self._waiting if job.id in ids]
        for job in canceled:
            self._waiting.remove(job)
            self._forget(job)
            EventStream(job, self.sender).emit(Done("canceled"))


async def _predict(
    runner: Runner, job: Job, stream: EventStream, log_file: TextIO, end_out_of_memory: Callable[[str], None]
) -> None:
    """Run one prediction and emit its events.

    If the device is out of memory, ``end_out_of_memory`` is called and the prediction gets no last event.
    """
    log = capture.PredictionLog(lambda text: stream.emit(Log(text)), log_file)
    capture.assign(log)
    started = time.perf_counter()
    try:
        events = runner.run(job)
        try:
            async for event in events:
                if isinstance(event, Log):
                    log.write(event.text)
                    continue
                if isinstance(event, Output) and output_files.has_files(event):
                    event = await output_files.take_over(job, event)  # noqa: PLW2901 - the same event
                stream.emit(event)
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()
    except asyncio.CancelledError:
        done = Done("canceled")
    except Exception as error:  # noqa: BLE001  # the code of a model raises any error
        reason = out_of_memory(error)
        if reason is not None:
            end_out_of_memory(reason)
            return
        if isinstance(error, PredictionFailed):
            done = Done("failed", error.detail)
        else:
            log.write(traceback.format_exc())
            done = Done("failed", str(error) or type(error).__name__)
    else:
        done = Done("succeeded")
    log.close()
    stream.emit(Metric("predict_time", round(time.perf_counter() - started, 6)))
    stream.emit(done)


async def _serve(
    sock: socket.socket, request: Fork, log_file: TextIO, loaded: Callable[[], object] | None
) -> int:
    started = time.perf_counter()
    spec = request.spec
    worker = WorkerProcess(spec, log_file, _end_with_group)
    await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=sock)
    setup = asyncio.create_task(_set_up(spec))
    stop = asyncio.create_task(worker.stopped.wait())
    await asyncio.wait({setup, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not setup.done():  # stopped during the load; child processes are killed with the process group
        await worker.close()
        return 0
    try:
        runner = setup.result()
    except Exception as error:  # noqa: BLE001  # the code of a model raises any error
        if not isinstance(error, LoadFailed):
            traceback.print_exc()
        message = error.detail if isinstance(error, LoadFailed) else f"{type(error).__name__}: {error}"
        reason = out_of_memory(error)
        await worker.close(WorkerFailed(reason or message, out_of_memory=reason is not None))
        return 1
    _log.info("model %s is loaded after %.1f s", spec.model, time.perf_counter() - started)
    server = await listen(Path(request.socket), worker.sender, worker.start, worker.cancel)
    worker.ready(runner, WorkerReady(list(runner.levels) if isinstance(runner, Sleeper) else []))
    if loaded is not None:
        loaded()
    measuring = asyncio.create_task(worker.measure())
    await stop
    measuring.cancel()
    if worker.out_of_memory is not None:
        await worker.close(WorkerFailed(worker.out_of_memory, out_of_memory=True))
        return 1
    if server is not None:
        server.close()
    await runner.close()
    await worker.close()
    return 0


async def _set_up(spec: LoadSpec) -> Runner:
    runner = runner_class(spec.kind)(spec)
    await runner.setup()
    return runner


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__


def _end_with_group() -> NoReturn:
    """Kill this process and its children, because the replica has ended and nobody receives the results."""
    print("the worker process exits, because its runner replica has ended", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("a process outlived SIGKILL")


def run(sock: socket.socket, request: Fork, loaded: Callable[[], object] | None = None) -> NoReturn:
    """Run this process as the worker process of a model, and exit.

    This process must lead its process group. Its descriptors 1 and 2 must be the log file. ``sock`` is
    connected to the runner replica. ``loaded`` is called when the model is loaded.
    """
    code = 1
    try:
        spec, pid_files = request.spec, Path(request.pid_files)
        cleanup.write_pid_file(pid_files, spec.model)
        cleanup.use_own_folder(pid_files)
        isolated = spec.sandboxed or landlock.restrict()  # before other threads run
        log_file = capture.install()
        faulthandler.enable(log_file)
        logs.configure()
        if not isolated:
            _log.warning(
                "Landlock is not available: the code of model %s can read the environment and the memory of "
                "the other processes of this user: use Linux 5.19 or later, with landlock in the kernel "
                "parameter lsm",
                spec.model,
            )
        gc.enable()
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        code = loop.run_until_complete(_serve(sock, request, log_file, loaded))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  # in a forked process the callers of this function belong to the zygote
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
