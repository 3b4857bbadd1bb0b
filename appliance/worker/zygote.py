"""The zygote imports heavy libraries once and forks worker processes: ``python -m appliance.worker.zygote``.

One thread, no event loop, nothing that a forked child could inherit in a broken state. A client connects,
sends one ``Fork`` with the socket of the worker process beside it, and keeps the connection. The zygote
reports the end of the worker process on that connection; closing it kills the worker process. The zygote
adopts and reaps the orphans of dead worker processes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from appliance.observability import logs
from appliance.worker import cleanup, process, protocol
from appliance.worker.cleanup import reclaim
from appliance.worker.protocol import Exited, Fork, Forked, Prepare, Refused, ToZygote

__all__ = ["Zygote", "main", "reclaim"]

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_CHUNK: Final = 65536


class _Client:
    """One connection, and the worker process that lives as long as it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = protocol.MessageReader(msgspec.msgpack.Decoder(ToZygote))
        self.descriptors: list[int] = []
        self.pid: int | None = None
        self.pid_files = Path()

    def tell(self, message: protocol.FromZygote) -> None:
        """Send ``message``; a client that is gone needs none."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(protocol.encode(message))

    def close(self) -> None:
        self.sock.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


class Zygote:
    """Listens on a socket in the file system and forks what clients ask for."""

    def __init__(self, path: Path) -> None:
        """Listens from here on; connections wait until ``serve``."""
        self._path = path
        self._clients: set[_Client] = set()
        self._hosts: dict[int, _Client] = {}
        self._ending = False
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._wake, self._signal = socket.socketpair()
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        self._listener.bind(str(fresh))
        fresh.chmod(0o600)
        self._listener.listen(128)
        fresh.rename(path)  # takes the place of an earlier zygote's socket without a gap

    def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then kill every worker process."""
        self._catch_signals()
        for sock in (self._listener, self._wake):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        while not self._ending:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake:
                    self._wake.recv(_CHUNK)
                    self._reap()
                elif key.data in self._clients:  # an earlier one of this round may have dropped it
                    self._receive(key.data)
        self._end()

    def _catch_signals(self) -> None:
        self._signal.setblocking(False)
        signal.set_wakeup_fd(self._signal.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the wakeup descriptor tells
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._order_end)

    def _order_end(self, *_: object) -> None:
        self._ending = True

    def _end(self) -> None:
        for pid, client in self._hosts.items():
            _kill_group(pid)
            cleanup.remove(client.pid_files, pid)
        _log.info("ended, with %d worker processes", len(self._hosts))

    def _accept(self) -> None:
        client = _Client(self._listener.accept()[0])
        self._clients.add(client)
        self._selector.register(client.sock, selectors.EVENT_READ, client)

    def _receive(self, client: _Client) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(client.sock, _CHUNK, 1)
        except ConnectionResetError:
            data, descriptors = b"", []
        client.descriptors += descriptors
        if not data:
            self._drop(client)
            return
        try:
            orders = client.reader.feed(data)
        except msgspec.DecodeError as error:
            _log.error("a client is dropped: %s", error)
            self._drop(client)
            return
        for order in orders:
            if isinstance(order, Prepare):
                preload(order.modules)
            elif client.descriptors and client.pid is None:
                self._fork(client, order, client.descriptors.pop())

    def _drop(self, client: _Client) -> None:
        """The client is gone: its worker process has nobody left to talk to."""
        self._selector.unregister(client.sock)
        self._clients.discard(client)
        client.close()
        if client.pid is not None:
            _kill_group(client.pid)

    def _fork(self, client: _Client, order: Fork, descriptor: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            _log.error("cannot fork a worker process for %s: %s", order.spec.model, error)
            os.close(descriptor)
            client.tell(Refused(f"cannot start a process: {error.strerror}"))
            return
        if pid == 0:
            self._become_host(order, descriptor)
        os.close(descriptor)
        client.pid, client.pid_files = pid, Path(order.pid_files)
        self._hosts[pid] = client
        _log.info("host %d forked for %s", pid, order.spec.model)
        client.tell(Forked(pid))

    def _become_host(self, order: Fork, descriptor: int) -> NoReturn:
        """In the child: leave everything of the zygote behind."""
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            _redirect(order.log)
            self._selector.close()
            for client in self._clients:
                client.close()
            for sock in (self._listener, self._wake, self._signal):
                sock.close()
            os.environ.update(order.environment)
            logging.getLogger().handlers.clear()
            process.run(socket.socket(fileno=descriptor), order.spec, Path(order.pid_files))
        except BaseException:  # noqa: BLE001  # a child must never return into the zygote's loop
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _reap(self) -> None:
        """Reap every child that has ended; most of the others are orphans of dead worker processes."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            client = self._hosts.pop(pid, None)
            if client is None:
                continue
            with contextlib.suppress(ProcessLookupError):  # it had no children, or took them along
                os.killpg(pid, signal.SIGKILL)
            cleanup.remove(client.pid_files, pid)
            client.pid = None
            exited = _exited(status)
            _log.info("host %d ended: %s", pid, exited)
            if client in self._clients:
                client.tell(exited)


def _exited(status: int) -> Exited:
    if os.WIFSIGNALED(status):
        return Exited(None, os.WTERMSIG(status))
    return Exited(os.WEXITSTATUS(status), None)


def _kill_group(pid: int) -> None:
    """Kill a worker process that is not reaped yet, so that ``pid`` is surely its own, and its children."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # just forked, not a leader yet
        os.kill(pid, signal.SIGKILL)


def _redirect(log: str) -> None:
    """Point the standard streams away from the zygote's."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def preload(names: list[str]) -> None:
    """Import modules for worker processes; a failed import is logged, and fails again there."""
    gc.disable()  # imports only add; worker processes switch it on again
    for name in names:
        if name in sys.modules:
            continue
        started = time.perf_counter()
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  # libraries raise all sorts of things when they do not fit
            _log.error("cannot import %s: %s: %s", name, type(error).__name__, error)
        else:
            _log.info("imported %s in %.1f s", name, time.perf_counter() - started)
    gc.collect()
    gc.freeze()  # what is shared stays shared: no collection in a worker process touches these objects
    _stop_threads()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    if len(threads) > 1:
        _log.warning(
            "imports have started threads, which no forked worker process will have: %s", ", ".join(threads)
        )


def _stop_threads() -> None:
    """OpenBLAS starts threads when it is imported, stops them for a fork, and starts them again when used."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _tie_to_parent() -> None:
    """End when the parent does, and adopt orphans of worker processes instead of leaving them to init."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGTERM), (_PR_SET_CHILD_SUBREAPER, 1)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def main() -> None:
    """The command line of the zygote; ``appliance serve`` is what uses it."""
    parser = argparse.ArgumentParser(prog="python -m appliance.worker.zygote")
    parser.add_argument("--socket", type=Path, required=True, help="where to listen")
    parser.add_argument("--preload", default="", help="modules to import, separated by commas")
    arguments = parser.parse_args()
    _tie_to_parent()
    logs.configure()
    zygote = Zygote(arguments.socket)
    preload([name for name in arguments.preload.split(",") if name])
    zygote.serve()
    sys.stderr.flush()
    os._exit(0)  # the imported libraries have nothing to tidy up that is worth the time


if __name__ == "__main__":
    main()
