"""The life of a worker process: load the model, run predictions, end with the replica.

One task a prediction, on one event loop. The process leads a process group, which is killed as a whole:
the zygote kills it when the worker process exits (the replica, if it spawned the process), and the worker
process itself does when its replica is gone.
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
from appliance.machine import process_memory
from appliance.observability import logs
from appliance.runners import runner_class
from appliance.runners.base import LoadSpec, Runner, Sleeper
from appliance.worker import cleanup, protocol
from appliance.worker.process import capture, output_files
from appliance.worker.process.event_sender import EventSender, EventStream
from appliance.worker.process.gpu_oom import out_of_memory
from appliance.worker.protocol import (
    Cancel,
    Failed,
    Ready,
    Run,
    SleepWorker,
    Stop,
    WakeWorker,
    WorkerAsleep,
    WorkerAwake,
    WorkerCommand,
    WorkerSleepFailed,
)

_log = logging.getLogger(__name__)

_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def environment(spec: LoadSpec) -> dict[str, str]:
    """The variables a worker process needs in its environment: its threads and the devices it may see.

    Libraries that are already imported in the zygote have read some of them by then; a runner sets threads
    through its library as well.
    """
    indexes = [name.removeprefix("cuda:") for name in spec.device.split(",") if name.startswith("cuda:")]
    return {
        **{name: str(spec.threads) for name in _THREAD_VARIABLES},
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the order in which devices are discovered
        "CUDA_VISIBLE_DEVICES": ",".join(indexes),
    }


class WorkerProcess(asyncio.Protocol):
    """The worker process's end of the socket to its replica, and the predictions that run."""

    def __init__(self, spec: LoadSpec, log_file: TextIO, orphaned: Callable[[], object]) -> None:
        """``orphaned`` is called when the replica is gone."""
        self._spec = spec
        self._log_file = log_file
        self._orphaned = orphaned
        self._reader: protocol.MessageReader[WorkerCommand] = protocol.MessageReader(
            msgspec.msgpack.Decoder(WorkerCommand)
        )
        self._runner: Runner | None = None
        self._waiting: deque[Job] = deque()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._awake = True  # False from being told to sleep until it is awake again
        self._turning: asyncio.Task[None] | None = None  # it falls asleep, or wakes
        self._transport: asyncio.Transport
        self._outgoing: EventSender
        self._closing = False
        self.stopped = asyncio.Event()  # the replica asks for the end, or there is no going on
        self.out_of_memory: str | None = None  # what was said when the memory of the device was used up
        self._closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of ``asyncio.Protocol``."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        self._outgoing = EventSender(self._transport.write)

    def data_received(self, data: bytes) -> None:
        """Part of ``asyncio.Protocol``."""
        for message in self._reader.feed(data):
            match message:
                case Run(jobs):
                    self._waiting.extend(jobs)
                    self._fill()
                case Cancel(ids):
                    self._cancel(ids)
                case SleepWorker(level):
                    self._turning = asyncio.get_running_loop().create_task(self._sleep(level))
                case WakeWorker():
                    self._turning = asyncio.get_running_loop().create_task(self._wake())
                case Stop():
                    self.stopped.set()

    def pause_writing(self) -> None:
        """Part of ``asyncio.Protocol``."""
        self._outgoing.pause()

    def resume_writing(self) -> None:
        """Part of ``asyncio.Protocol``."""
        self._outgoing.resume()

    def connection_lost(self, _: Exception | None) -> None:
        """Part of ``asyncio.Protocol``."""
        self._closed.set()
        if not self._closing:
            self._orphaned()

    def ready(self, runner: Runner, message: Ready) -> None:
        """The model is loaded: predictions may come."""
        self._runner = runner
        self._transport.write(protocol.encode(message))
        self._fill()

    async def close(self, last: Failed | None = None) -> None:
        """Send ``last`` and let go of the socket."""
        self._closing = True
        if last is not None:
            self._transport.write(protocol.encode(last))
        self._transport.close()
        await self._closed.wait()

    def _fill(self) -> None:
        """Begin what waits, as far as the model takes more at a time."""
        runner = self._runner
        if runner is None or not self._awake:
            return
        while self._waiting and len(self._running) < self._spec.concurrency:
            job = self._waiting.popleft()
            stream = EventStream(job, self._outgoing)
            work = _predict(runner, job, stream, self._log_file, self._starve)
            task = asyncio.get_running_loop().create_task(work)
            self._running[job.id] = task
            task.add_done_callback(partial(self._ended, job.id, stream))

    def _starve(self, reason: str) -> None:
        """The device is out of memory: a new worker process with more of it runs these predictions again."""
        self.out_of_memory = self.out_of_memory or reason
        self.stopped.set()

    def _ended(self, id: str, stream: EventStream, task: asyncio.Task[None]) -> None:
        del self._running[id]
        if not stream.done and self.out_of_memory is None:
            if task.cancelled():  # before its first step
                stream.emit(Done("canceled"))
            else:
                stream.emit(
                    Done("failed", f"the worker process could not send the end: {task.exception()!r}")
                )
        self._fill()

    async def _sleep(self, level: int) -> None:
        """Have the model give its device back."""
        runner = self._runner
        if runner is None or not isinstance(runner, Sleeper) or level not in runner.levels:
            self._send(WorkerSleepFailed(f"{self._spec.model} is not able to sleep at level {level}"))
        elif self._running or self._waiting:
            count = len(self._running) + len(self._waiting)
            self._send(
                WorkerSleepFailed(f"{self._spec.model} cannot sleep while {count} predictions are here")
            )
        else:
            self._awake = False
            try:
                left = await runner.sleep(level)
            except Exception as error:  # noqa: BLE001  # libraries raise what they like; the worker process is ended
                traceback.print_exc()
                self._send(WorkerSleepFailed(f"{self._spec.model} could not fall asleep: {_words(error)}"))
            else:
                self._send(WorkerAsleep(left))

    async def _wake(self) -> None:
        """Have the model take its device again, then begin what came meanwhile."""
        runner = self._runner
        try:
            if runner is not None and isinstance(runner, Sleeper) and not self._awake:
                await runner.wake()
        except Exception as error:  # noqa: BLE001  # the same
            traceback.print_exc()
            self._send(WorkerSleepFailed(f"{self._spec.model} could not wake: {_words(error)}"))
            return
        self._awake = True
        self._send(WorkerAwake())
        self._fill()

    def _send(self, message: WorkerAsleep | WorkerAwake | WorkerSleepFailed) -> None:
        self._transport.write(protocol.encode(message))

    def _cancel(self, ids: list[str]) -> None:
        for id in ids:
            task = self._running.get(id)
            if task is not None:
                task.cancel()
        canceled = [job for job in self._waiting if job.id in ids]
        for job in canceled:
            self._waiting.remove(job)
            EventStream(job, self._outgoing).emit(Done("canceled"))


async def _predict(
    runner: Runner, job: Job, stream: EventStream, log_file: TextIO, starve: Callable[[str], None]
) -> None:
    """Run one prediction to its ``Done``; ``starve`` is called instead if the device has no memory for it."""
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
                    event = await output_files.taken(job, event)  # noqa: PLW2901 - the same event
                stream.emit(event)
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()
    except asyncio.CancelledError:
        done = Done("canceled")
    except Exception as error:  # noqa: BLE001  # a model's code raises what it likes; its prediction fails
        reason = out_of_memory(error)
        if reason is not None:
            starve(reason)
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


async def _serve(sock: socket.socket, spec: LoadSpec, log_file: TextIO) -> int:
    """Be a worker process until the replica says stop; returns the exit code."""
    started = time.perf_counter()
    host = WorkerProcess(spec, log_file, _end_with_group)
    await asyncio.get_running_loop().create_unix_connection(lambda: host, sock=sock)
    setup = asyncio.create_task(_set_up(spec))
    stop = asyncio.create_task(host.stopped.wait())
    await asyncio.wait({setup, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not setup.done():  # unloaded while it loads; children die with the group
        await host.close()
        return 0
    try:
        runner = setup.result()
    except Exception as error:  # noqa: BLE001  # a model's code raises what it likes while it loads
        if not isinstance(error, LoadFailed):
            traceback.print_exc()
        said = error.detail if isinstance(error, LoadFailed) else f"{type(error).__name__}: {error}"
        reason = out_of_memory(error)
        await host.close(Failed(said if reason is None else reason, out_of_memory=reason is not None))
        return 1
    seconds = round(time.perf_counter() - started, 3)
    _log.info("%s is ready after %.3f s", spec.model, seconds)
    levels = list(runner.levels) if isinstance(runner, Sleeper) else []
    group = os.getpgrp()
    memory = process_memory.anonymous(
        group, process_memory.inherited(os.getpid())
    ) + process_memory.file_backed(group)
    host.ready(runner, Ready(memory, seconds, levels))
    await stop
    if host.out_of_memory is not None:
        await host.close(Failed(host.out_of_memory, out_of_memory=True))
        return 1
    await runner.close()
    await host.close()
    return 0


async def _set_up(spec: LoadSpec) -> Runner:
    runner = runner_class(spec.kind)(spec)
    await runner.setup()
    return runner


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _end_with_group() -> NoReturn:
    """The replica is gone, and nobody will ask for this worker process's results: end, with all children."""
    print("the runner replica is gone; the worker process ends", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("a process outlived SIGKILL")


def run(sock: socket.socket, spec: LoadSpec, pid_files: Path) -> NoReturn:
    """Be the worker process of ``spec`` in this process, which must lead its process group; never returns.

    ``sock`` is connected to the runner replica; descriptors 1 and 2 are the log file; ``pid_files`` is the
    folder of pid files.
    """
    code = 1
    try:
        cleanup.write_pid_file(pid_files, spec.model)
        cleanup.use_own_folder(pid_files)
        log_file = capture.install()
        faulthandler.enable(log_file)
        logs.configure()
        gc.enable()
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        code = loop.run_until_complete(_serve(sock, spec, log_file))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  # the last frame of the process: below it is the zygote's code
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
