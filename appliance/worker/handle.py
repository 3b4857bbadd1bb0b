"""The runner replica's side of a worker process: start, exchange messages, report how it ended, kill."""

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

LOG_LIMIT: Final = (
    10 * 1024 * 1024
)  # bytes of a log file above which the next worker process begins a new one
TAIL_BYTES: Final = 8192
_SIGNALS: Final = {number.value: number.name for number in signal.Signals}
_PATIENCE: Final = 2.0  # seconds that the two signs of a worker process's end may lie apart
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
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        for message in self._reader.feed(data):
            self._receive(message)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class _ZygoteLine(asyncio.Protocol):
    """The connection to the zygote that lives as long as the worker process."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._reader: protocol.MessageReader[FromZygote] = protocol.MessageReader(
            msgspec.msgpack.Decoder(FromZygote)
        )
        self.started: asyncio.Future[Forked | Refused | None] = loop.create_future()
        self.exited: asyncio.Future[Exited | None] = loop.create_future()
        self.transport: asyncio.BaseTransport
        self.pid = 0  # once `started`

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
    """One running worker process. Made by ``start``."""

    def __init__(
        self,
        pid: int,
        channel: _Channel,
        exited: asyncio.Future[Exited | None],
        *,
        order: Fork,
        log_start: int,
        line: _ZygoteLine | None,
    ) -> None:
        """``exited`` resolves to None when nobody can say any more how the worker process ended."""
        self.pid = pid
        self.signal: int | None = None  # that ended it, once it is gone
        self._channel = channel
        self._exited = exited
        self._order = order
        self._log_start = log_start
        self._line = line
        self._over = False  # the process group is known to be gone: its number may be reused
        self._end = asyncio.get_running_loop().create_task(self._watch())

    @property
    def forked(self) -> bool:
        """Whether the zygote forked it; otherwise it was spawned and had to import everything itself."""
        return self._line is not None

    @classmethod
    async def start(
        cls,
        zygote_socket: str,
        spec: LoadSpec,
        *,
        log: Path,
        pid_files: Path,
        receive: Callable[[WorkerEvent], None],
    ) -> Self:
        """Fork a worker process through the zygote, or spawn one where that cannot be reached.

        ``log`` is the file for its output, ``pid_files`` the folder for its pid file. From now
        on ``receive`` is called with every message of the worker process, in order, on the running loop.

        Raises:
            LoadFailed: the operating system would not start a process.
        """
        log_start = _begin_log(log)
        order = Fork(spec, environment(spec), str(log), str(pid_files))
        ours, theirs = socket.socketpair()
        line = None
        try:
            with theirs:
                line = await _ask_zygote(zygote_socket, order, theirs)
                if line is None:
                    pid, exited = _spawn(order, theirs, ours)
                else:
                    pid, exited = line.pid, line.exited
            _, channel = await asyncio.get_running_loop().create_unix_connection(
                lambda: _Channel(receive), sock=ours
            )
        except BaseException:  # a worker process that was started all the same ends with its socket
            ours.close()
            if line is not None:
                line.transport.close()
            raise
        return cls(pid, channel, exited, order=order, log_start=log_start, line=line)

    def send(self, message: WorkerCommand) -> None:
        """Queue ``message`` for the worker process; a worker process that is gone does not get it."""
        if not self._channel.transport.is_closing():
            self._channel.transport.write(protocol.encode(message))

    async def wait(self) -> str:
        """How the worker process ended, as the end of a sentence: "exited with code 3".

        Returns once the worker process and all of its children are gone and every message was received.
        """
        return await asyncio.shield(self._end)

    async def kill(self, grace: float = 0.0) -> None:
        """End the worker process with its whole process group; returns once it is gone.

        With ``grace`` the worker process gets that many seconds to close its runner first.
        """
        if grace > 0 and not self._end.done():
            self.send(Stop())
            await asyncio.wait({self._end}, timeout=grace)
        self._kill_group()
        await self.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that this worker process wrote to its log; empty if none can be read."""
        try:
            with Path(self._order.log).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except OSError:  # the loss of the worker process must be reported in any case
            return ""
        return tail(text, lines)

    async def _watch(self) -> str:
        """Follow the worker process to its end and clean up behind it."""
        exited, closed = self._exited, self._channel.closed
        await asyncio.wait({exited, closed}, return_when=asyncio.FIRST_COMPLETED)
        if exited.done() and exited.result() is None:  # the zygote is gone, the worker process lives on
            await closed
        await asyncio.wait({exited}, timeout=_PATIENCE)
        self._kill_group()
        await asyncio.wait({exited, closed}, timeout=_PATIENCE)
        self._over = True
        self._channel.transport.abort()
        if self._line is not None:
            self._line.transport.close()
        cleanup.remove(Path(self._order.pid_files), self.pid)
        status = exited.result() if exited.done() else None
        self.signal = None if status is None else status.signal
        return _describe(status)

    def _kill_group(self) -> None:
        if self._over or (self._exited.done() and self._exited.result() is not None):
            return  # whoever reaped the worker process has killed the group with it
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:  # just forked, not a leader yet
                os.kill(self.pid, signal.SIGKILL)


async def prepare(zygote_socket: Path, modules: list[str]) -> None:
    """Have the zygote import these modules; returns at once. Forks requested meanwhile wait for them."""
    try:
        _, writer = await asyncio.open_unix_connection(zygote_socket)
        writer.write(protocol.encode(Prepare(modules)))
        writer.close()
        await writer.wait_closed()
    except OSError as error:  # the next one is started with what is in force then
        _log.warning(
            "no zygote at %s (%s): modules of new model kinds are not preloaded", zygote_socket, error
        )


async def _ask_zygote(path: str, order: Fork, theirs: socket.socket) -> _ZygoteLine | None:
    """Have the zygote fork the worker process; None if there is no zygote.

    Raises:
        LoadFailed: the operating system would not fork.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(_PATIENCE)  # local, and the zygote's backlog is long: this does not wait
        sock.connect(path)
        frame = protocol.encode(order)
        sent = socket.send_fds(sock, [frame], [theirs.fileno()])
        sock.sendall(frame[sent:])
    except OSError as error:
        sock.close()
        _log.warning(
            "no zygote at %s (%s): a worker process for %s is spawned", path, error, order.spec.model
        )
        return None
    _, line = await asyncio.get_running_loop().create_unix_connection(_ZygoteLine, sock=sock)
    try:
        answer = await line.started
    except asyncio.CancelledError:
        line.transport.close()
        raise
    match answer:
        case Forked(pid):
            line.pid = pid
            return line
        case Refused(reason):
            raise LoadFailed(reason)
        case None:
            _log.warning("the zygote at %s ended: a worker process for %s is spawned", path, order.spec.model)
            return None


def _spawn(
    order: Fork, theirs: socket.socket, ours: socket.socket
) -> tuple[int, asyncio.Future[Exited | None]]:
    """Start a worker process the slow way. A pidfd, because child watchers want the main thread's loop."""
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[Exited | None] = loop.create_future()
    with Path(order.log).open("ab") as log:
        log.write(b"spawned, not forked: the zygote could not be reached, so all imports happen here\n")
        log.flush()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "appliance.worker.process", "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**without_secrets(), **order.environment},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError as error:
            raise LoadFailed(f"cannot start a process: {error.strerror}") from error
    descriptor = os.pidfd_open(process.pid)

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):  # before it is reaped: its number is still its own
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        _settle(exited, Exited(code, None) if code >= 0 else Exited(None, -code))

    loop.add_reader(descriptor, ended)
    ours.sendall(protocol.encode(order))
    return process.pid, exited


def _settle(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def tail(text: str, lines: int) -> str:
    """The last lines as a terminal shows them: of a redrawn line (a progress bar) only its last state."""
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\r\n").split("\n")]
    return "\n".join(shown[-lines:])


def _describe(status: Exited | None) -> str:
    match status:
        case Exited(signal=int(number)):
            return f"was killed by signal {number} ({_SIGNALS.get(number, 'real-time')})"
        case Exited(code=code):
            return f"exited with code {code}"
        case None:
            return "ended; how is not known, because the zygote that started it had ended before"


def _begin_log(log: Path) -> int:
    """Create the log file, or rotate one that is too large; returns where the new process's part begins."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_name(log.name + ".1"))
    log.touch(mode=0o600)
    return log.stat().st_size
