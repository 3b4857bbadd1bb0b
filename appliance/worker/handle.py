"""Starts, messages and ends the worker process of a runner replica."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self, TypeVar, cast

import msgspec

from appliance.domain.errors import LoadFailed
from appliance.runners.base import LoadSpec
from appliance.runners.child_environment import without_secrets
from appliance.worker import cleanup, protocol
from appliance.worker.process import environment
from appliance.worker.protocol import (
    Exited,
    Fork,
    Forked,
    FromZygote,
    Prepare,
    Refused,
    Stop,
    WorkerCommand,
    WorkerEvent,
)

_log = logging.getLogger(__name__)

LOG_LIMIT: Final = 10 * 1024 * 1024  # bytes; a larger log file is rotated when the next worker process starts
TAIL_BYTES: Final = 8192  # at the end of the log, from which ``log_tail`` takes lines
_PATIENCE: Final = 2.0  # seconds, at most, between the end of a process and the end of its socket
#: Variables with which a Python finds modules of other environments.
_APPLIANCE_PATHS: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_decoder: Final = msgspec.msgpack.Decoder(WorkerEvent)
T = TypeVar("T")


class _Channel(asyncio.Protocol):
    """The socket to the worker process."""

    def __init__(self, receive: Callable[[WorkerEvent], None]) -> None:
        self._receive = receive
        self._reader: protocol.MessageReader[WorkerEvent] = protocol.MessageReader(_decoder)
        self.transport: asyncio.Transport
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._receive(message)

    def connection_lost(self, _: Exception | None) -> None:
        _settle(self.closed, None)


class _ZygoteConnection(asyncio.Protocol):
    """A connection to the zygote for one worker process. It stays open while the worker process runs."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._reader: protocol.MessageReader[FromZygote] = protocol.MessageReader(
            msgspec.msgpack.Decoder(FromZygote)
        )
        self.started: asyncio.Future[Forked | Refused | None] = loop.create_future()
        self.exited: asyncio.Future[Exited | None] = loop.create_future()
        self.transport: asyncio.BaseTransport
        self.pid = 0  # of the worker process; set once ``started`` is done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            if isinstance(message, Exited):
                _settle(self.exited, message)
            else:
                _settle(self.started, message)

    def connection_lost(self, _: Exception | None) -> None:
        _settle(self.started, None)
        _settle(self.exited, None)


class WorkerHandle:
    """One worker process, created with ``start``."""

    def __init__(
        self,
        pid: int,
        channel: _Channel,
        exited: asyncio.Future[Exited | None],
        *,
        request: Fork,
        log_start: int,
        zygote: _ZygoteConnection | None,
    ) -> None:
        """The result of ``exited`` is None if the zygote ends first, so that the exit code stays unknown."""
        self.pid = pid
        self.exit_code: int | None = None  # as in ``Exited``; None while the process runs, or if unknown
        self._channel = channel
        self._exited = exited
        self._request = request
        self._log_start = log_start
        self._zygote = zygote
        self._over = False  # the process group has ended, and its id may belong to other processes
        self._end = asyncio.get_running_loop().create_task(self._watch())

    @property
    def forked(self) -> bool:
        """Whether the zygote has forked the process. A spawned process imports the libraries itself."""
        return self._zygote is not None

    @classmethod
    async def start(
        cls,
        zygote_socket: str,
        spec: LoadSpec,
        *,
        log: Path,
        pid_files: Path,
        socket_path: Path,
        receive: Callable[[WorkerEvent], None],
    ) -> Self:
        """Let the zygote fork a worker process, or spawn one if the zygote cannot be reached.

        The worker process of a model with an environment of its own is always spawned, with the Python of the
        environment: a forked process would have the libraries of the zygote.

        ``log`` is the file for the output of the process, ``pid_files`` the folder for its pid file. The
        process listens at ``socket_path`` for the gateway.
        ``receive`` is called with each message of the process, in order, on the running loop.

        Raises:
            LoadFailed: the operating system refused to start a process.
        """
        log_start = _begin_log(log)
        request = Fork(spec, environment(spec), str(log), str(pid_files), str(socket_path))
        ours, theirs = socket.socketpair()
        zygote = None
        try:
            with theirs:
                zygote = await _fork(zygote_socket, request, theirs) if spec.python is None else None
                if zygote is None:
                    pid, exited = _spawn(request, theirs, ours)
                else:
                    pid, exited = zygote.pid, zygote.exited
            _, channel = await asyncio.get_running_loop().create_unix_connection(
                lambda: _Channel(receive), sock=ours
            )
        except BaseException:  # a worker process that was started ends when its socket is closed
            ours.close()
            if zygote is not None:
                zygote.transport.close()
            raise
        return cls(pid, channel, exited, request=request, log_start=log_start, zygote=zygote)

    def send(self, message: WorkerCommand) -> None:
        """Send a message without waiting. Does nothing if the worker process has ended."""
        if not self._channel.transport.is_closing():
            self._channel.transport.write(protocol.encode(message))

    async def wait(self) -> str:
        """Wait until the worker process and its children have ended and all messages were received.

        Returns how the worker process ended, as the end of a sentence: "exited with code 3".
        """
        return await asyncio.shield(self._end)

    async def kill(self, grace: float = 0.0) -> None:
        """Kill the worker process and its children, and wait until they have ended.

        Before, the worker process gets ``grace`` seconds to close its runner.
        """
        if grace > 0 and not self._end.done():
            self.send(Stop())
            await asyncio.wait({self._end}, timeout=grace)
        self._kill_group()
        await self.wait()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that the process has written to its log; "" if the log cannot be read."""
        try:
            with Path(self._request.log).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:  # the loss of the worker process is reported in any case
            return ""
        return tail(text, lines)

    async def _watch(self) -> str:
        """Wait for the end of the worker process, kill the rest of its group, and remove its files."""
        exited, closed = self._exited, self._channel.closed
        await asyncio.wait({exited, closed}, return_when=asyncio.FIRST_COMPLETED)
        if (
            exited.done() and exited.result() is None
        ):  # the zygote has ended, but the worker process still runs
            await closed
        await asyncio.wait({exited}, timeout=_PATIENCE)
        self._kill_group()
        await asyncio.wait({exited, closed}, timeout=_PATIENCE)
        self._over = True
        self._channel.transport.abort()
        if self._zygote is not None:
            self._zygote.transport.close()
        cleanup.remove(Path(self._request.pid_files), self.pid)
        Path(self._request.socket).unlink(missing_ok=True)
        status = exited.result() if exited.done() else None
        self.exit_code = None if status is None else status.code
        return str(status or "ended: its exit code is unknown, because the zygote process had ended before")

    def _kill_group(self) -> None:
        if self._over or (self._exited.done() and self._exited.result() is not None):
            return  # the group was killed when the zygote, or ``_spawn``, reaped the worker process
        cleanup.kill_group(self.pid)


async def prepare(zygote_socket: Path, modules: list[str]) -> None:
    """Let the zygote import these modules. Returns without waiting for the imports."""
    try:
        _, writer = await asyncio.open_unix_connection(zygote_socket)
        writer.write(protocol.encode(Prepare(modules)))
        writer.close()
        await writer.wait_closed()
    except OSError as error:  # the next zygote gets the modules of the config in force when it starts
        _log.warning(
            "cannot connect to the zygote process at %s: %s: modules of new model kinds are not preloaded",
            zygote_socket,
            error,
        )


async def _fork(path: str, request: Fork, theirs: socket.socket) -> _ZygoteConnection | None:
    """Let the zygote fork the worker process; return None if the zygote does not run.

    Raises:
        LoadFailed: the operating system refused to fork.
    """
    model = request.spec.model
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_PATIENCE)  # not reached: the socket is local, and its backlog long
        sock.connect(path)
        message = protocol.encode(request)
        sent = socket.send_fds(sock, [message], [theirs.fileno()])
        sock.sendall(message[sent:])
    except OSError as error:
        sock.close()
        _log.warning(
            "cannot connect to the zygote process at %s: %s: the worker process of %s is started without it,"
            " which takes longer",
            path,
            error,
            model,
        )
        return None
    _, zygote = await asyncio.get_running_loop().create_unix_connection(_ZygoteConnection, sock=sock)
    try:
        answer = await zygote.started
    except asyncio.CancelledError:
        zygote.transport.close()
        raise
    match answer:
        case Forked(pid):
            zygote.pid = pid
            return zygote
        case Refused(reason):
            raise LoadFailed(reason)
        case None:
            _log.warning(
                "the zygote process at %s has ended: the worker process of %s is started without it,"
                " which takes longer",
                path,
                model,
            )
            return None


def _spawn(
    request: Fork, theirs: socket.socket, ours: socket.socket
) -> tuple[int, asyncio.Future[Exited | None]]:
    """Start a worker process that imports the libraries itself; return its process id and its future exit.

    A pidfd reports the exit, because asyncio's child watchers need the event loop of the main thread.
    """
    variables = {**without_secrets(), **request.environment}
    python, reason = [sys.executable], "which is not reachable"
    if (own := request.spec.python) is not None:
        python, reason = [own, "-P"], f"because the model has its own environment with {own}"
        for name in _APPLIANCE_PATHS:
            variables.pop(name, None)
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[Exited | None] = loop.create_future()
    with Path(request.log).open("ab") as log:
        log.write(f"started without the zygote process, {reason}: importing all libraries\n".encode())
        log.flush()
        try:
            process = subprocess.Popen(
                [*python, "-m", "appliance.worker.process", "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            advice = "" if own is None else f": {own}: run `appliance pull {request.spec.model}`"
            raise LoadFailed(f"cannot start a worker process: {error.strerror}{advice}") from error
    descriptor = os.pidfd_open(process.pid)

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):  # the id is still valid, because ``wait`` comes after
            os.killpg(process.pid, signal.SIGKILL)
        _settle(exited, Exited(process.wait()))

    loop.add_reader(descriptor, ended)
    ours.sendall(protocol.encode(request))
    return process.pid, exited


def _settle(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def tail(text: str, lines: int) -> str:
    """Return the last ``lines`` lines as a terminal shows them: a progress bar only in its last state."""
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\r\n").split("\n")]
    return "\n".join(shown[-lines:])


def _begin_log(log: Path) -> int:
    """Create the log file, or rotate a large one; return the size of the log file in bytes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_name(log.name + ".1"))
    log.touch(mode=0o600)
    return log.stat().st_size
