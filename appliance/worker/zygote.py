"""The zygote imports large libraries once and forks worker processes: ``python -m appliance.worker.zygote``.

The zygote answers requests between the imports of two modules. So a worker process waits only for the modules
of its own model kind. While a worker process loads its model, the zygote imports no modules of other kinds.

The zygote has one thread and no event loop, so that forked children inherit no broken state. A client
connects, sends one ``Fork`` together with the socket for the worker process, and keeps the connection open.
On this connection the zygote reports the end of the worker process. If the client closes the connection, the
zygote kills the worker process. The zygote also adopts and reaps orphaned children of dead worker processes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import linecache
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import IO, Final, Literal, NoReturn

import msgspec

from appliance.observability import logs
from appliance.runners import KINDS, preloaded_modules
from appliance.worker import cleanup, process, protocol
from appliance.worker.protocol import Exited, Fork, Forked, Prepare, Refused, ToZygote

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_CHUNK: Final = 65536  # bytes


class _Client:
    """A client's connection and its worker process, which is killed when the connection closes."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = protocol.MessageReader(msgspec.msgpack.Decoder(ToZygote))
        self.descriptors: list[int] = []
        self.pid: int | None = None
        self.loading: int | None = None  # pipe from the worker process, readable when it has loaded its model
        self.pid_files = Path()

    def send(self, message: protocol.FromZygote) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has ended
            self.sock.sendall(protocol.encode(message))

    def close(self) -> None:
        self.sock.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()


class Zygote:
    """Forks worker processes for clients that connect to the Unix socket ``path``."""

    def __init__(self, path: Path, modules: Iterable[str], hidden: Iterable[str] = ()) -> None:
        """Listen on ``path``. Connections are accepted and ``modules`` imported only by ``serve``.

        Here and in worker processes, the packages in ``hidden`` are as if they were not installed.
        """
        self._path = path
        self._modules = list(modules)  # to be imported
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes the import fail
        self._settled = False  # whether `_settle` has run since the last import
        self._importing = False
        self._clients: set[_Client] = set()
        self._workers: dict[int, _Client] = {}
        self._ending = False
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._wake, self._signal = socket.socketpair()
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        self._listener.bind(str(fresh))
        fresh.chmod(0o600)
        self._listener.listen(128)
        fresh.rename(path)  # replaces the socket of an earlier zygote without a gap

    def serve(self) -> None:
        """Import modules and fork worker processes until SIGTERM or SIGINT, then kill worker processes."""
        self._catch_signals()
        for sock in (self._listener, self._wake):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        while not self._ending:
            events = self._selector.select(0 if self._modules and not self._loads_model() else None)
            if not events:
                self._import([self._modules[0]])
                if not self._modules:
                    self._collect()
                    self._settle()
            for key, _ in events:
                if isinstance(key.data, int):
                    self._loaded(key.data)
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake:
                    self._wake.recv(_CHUNK)
                    self._reap()
                elif key.data in self._clients:  # otherwise ``_drop`` has removed the client since ``select``
                    self._receive(key.data)
        self._end()

    def _catch_signals(self) -> None:
        self._signal.setblocking(False)
        signal.set_wakeup_fd(self._signal.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the wakeup descriptor reports it
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        self._ending = True
        if self._importing:  # do not wait for the import, which may take many seconds
            self._end()
            os._exit(0)

    def _end(self) -> None:
        for pid, client in self._workers.items():
            cleanup.kill_group(pid)
            cleanup.remove(client.pid_files, pid)
        _log.info("the zygote process ends, and has killed %d worker processes", len(self._workers))

    def _loads_model(self) -> bool:
        return any(client.loading is not None for client in self._workers.values())

    def _loaded(self, pid: int) -> None:
        client = self._workers.get(pid)  # None if it has ended since ``select``
        if client is not None and client.loading is not None:
            self._selector.unregister(client.loading)
            os.close(client.loading)
            client.loading = None

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
            messages = client.reader.feed(data)
        except msgspec.DecodeError as error:
            _log.error("closing the connection of a runner replica to the zygote: invalid message: %s", error)
            self._drop(client)
            return
        for message in messages:
            if isinstance(message, Prepare):
                self._modules += message.modules
            elif client.descriptors and client.pid is None:
                self._fork(client, message, client.descriptors.pop())

    def _import(self, modules: Iterable[str]) -> None:
        """Import those ``modules`` that are requested and not imported yet.

        A failed import is only logged, because worker processes that need the module import it again.
        """
        self._settled = False
        gc.disable()  # imports create no garbage worth collecting; worker processes enable it again
        for name in modules:
            if name not in self._modules:
                continue
            self._modules = [each for each in self._modules if each != name]
            if name in sys.modules:
                continue
            started = time.perf_counter()
            self._importing = True
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001  # libraries raise any error if they do not fit the machine
                _log.error(
                    "cannot import %s into the zygote: %s: %s: worker processes that need it will try again",
                    name,
                    type(error).__name__,
                    error,
                )
            else:
                _log.info("imported %s into the zygote in %.1f s", name, time.perf_counter() - started)
            finally:
                self._importing = False

    def _collect(self) -> None:
        """Collect the garbage of all imports and return free memory. This takes too long before a fork."""
        self._settled = False
        gc.unfreeze()
        gc.collect()
        linecache.clearcache()  # source files that libraries have read
        ctypes.CDLL(None).malloc_trim(0)

    def _settle(self) -> None:
        """Prepare the process to fork: stop threads, and exclude all objects from garbage collections."""
        if self._settled:
            return
        gc.freeze()  # a garbage collection in a worker process would otherwise copy the shared pages
        _stop_threads()
        threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        if len(threads) > 1:
            text = "imported modules have started threads, which forked worker processes will not have: %s"
            _log.warning(text, ", ".join(threads))
        self._settled = True

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.sock)
        self._clients.discard(client)
        client.close()
        if client.pid is not None:
            cleanup.kill_group(client.pid)

    def _fork(self, client: _Client, request: Fork, descriptor: int) -> None:
        spec = request.spec
        device: Literal["cpu", "cuda"] = "cuda" if spec.device.startswith("cuda") else "cpu"
        # If the kind is unknown, one of the requested modules may define it.
        self._import(preloaded_modules(spec.kind, device) if spec.kind in KINDS else list(self._modules))
        self._settle()
        sys.stdout.flush()
        sys.stderr.flush()
        ends: tuple[int, ...] = ()
        try:
            ends = loading, loaded = os.pipe()
            pid = os.fork()
        except OSError as error:
            _log.error("cannot fork a worker process for model %s: %s", request.spec.model, error)
            for each in (descriptor, *ends):
                os.close(each)
            client.send(Refused(f"cannot start a worker process: {error.strerror}"))
            return
        if pid == 0:
            os.close(loading)
            self._become_worker(request, descriptor, loaded)
        os.close(descriptor)
        os.close(loaded)
        client.pid, client.pid_files, client.loading = pid, Path(request.pid_files), loading
        self._workers[pid] = client
        self._selector.register(loading, selectors.EVENT_READ, pid)
        _log.info("forked worker process %d for model %s", pid, request.spec.model)
        client.send(Forked(pid))

    def _become_worker(self, request: Fork, descriptor: int, loaded: int) -> NoReturn:
        """Close the sockets of the zygote in the forked child, and run the worker process.

        The process writes to the pipe ``loaded`` when it has loaded the model.
        """
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            _redirect(request.log)
            self._selector.close()
            for client in {*self._clients, *self._workers.values()}:
                client.close()
                if client.loading is not None:
                    os.close(client.loading)
            for sock in (self._listener, self._wake, self._signal):
                sock.close()
            os.environ.update(request.environment)
            logging.getLogger().handlers.clear()
            pipe = os.fdopen(loaded, "wb", buffering=0)
            process.run(socket.socket(fileno=descriptor), request, partial(_report_loaded, pipe))
        except BaseException:  # noqa: BLE001  # a child must never return into the zygote's loop
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._loaded(pid)
            client = self._workers.pop(pid, None)
            if client is None:
                continue
            with contextlib.suppress(ProcessLookupError):  # no other process is left in the group
                os.killpg(pid, signal.SIGKILL)
            cleanup.remove(client.pid_files, pid)
            client.pid = None
            exited = Exited(os.waitstatus_to_exitcode(status))
            _log.info("worker process %d %s", pid, exited)
            if client in self._clients:
                client.send(exited)


def _report_loaded(pipe: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError), pipe:  # the zygote may have ended
        pipe.write(b"\n")  # closing is not enough: children of this process may have copies of the pipe


def _redirect(log: str) -> None:
    """Replace standard input by /dev/null, and the other standard streams by the log file."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _stop_threads() -> None:
    """Stop the threads of OpenBLAS, which stops them at any fork and starts them again on use."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _tie_to_parent() -> None:
    """Let the kernel end this process when its parent dies, and let it adopt orphaned descendants."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGTERM), (_PR_SET_CHILD_SUBREAPER, 1)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m appliance.worker.zygote")
    parser.add_argument("--socket", type=Path, required=True, help="path of the Unix socket to listen on")
    parser.add_argument("--preload", default="", help="modules to import, separated by commas")
    parser.add_argument("--hide", default="", help="packages not to import, separated by commas")
    arguments = parser.parse_args()
    _tie_to_parent()
    logs.configure()
    modules, hidden = (filter(None, names.split(",")) for names in (arguments.preload, arguments.hide))
    Zygote(arguments.socket, modules, hidden).serve()
    sys.stderr.flush()
    os._exit(0)  # without the slow exit handlers of the imported libraries


if __name__ == "__main__":
    main()
