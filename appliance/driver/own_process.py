"""What the drivers of an appliance and of a node do with their own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from rich.console import Console

from appliance.domain.errors import ApplianceError, LeaseLost

#: Environment variable with the data folder, by which all processes of an appliance are found and killed.
HOME_MARK: Final = "APPLIANCE_SERVES"
_RESTART_DELAY: Final = 5.0  # seconds before a driver starts again after an error


def check_shared_memory(folder: Path = Path("/dev/shm")) -> None:  # noqa: S108 - where the kernel keeps it
    """Raise ``ApplianceError`` if ``folder`` is not writable, because Ray would hang without an error."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ApplianceError(
            f"shared memory at {folder} cannot be written: {error.strerror}: mount a writable tmpfs there,"
            " because Ray and models need it (docker: --shm-size=1g)"
        ) from error


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set ``stop`` at SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


class DriverState:
    """Whether a driver is past its first start, and so starts again after an error."""

    def __init__(self, *, past_first_start: bool) -> None:
        """``past_first_start``: a driver that this one replaces has served, or was the standby."""
        self.past_first_start = past_first_start
        self.stop = asyncio.Event()  # set at SIGINT and SIGTERM
        #: For the driver that replaces this one: what it must not read again from models.yaml.
        self.options: tuple[str, ...] = ()

    def starts_again(self, error: Exception) -> bool:
        """Return whether to start again after ``error``.

        At the first start, all errors but ``LeaseLost`` end the driver, so that the operator sees them.
        """
        return not self.stop.is_set() and (self.past_first_start or isinstance(error, LeaseLost))


class DriverConsole(Console):
    """A console for the operator that ignores write errors, such as a full disk."""

    def print(self, *objects: Any, **options: Any) -> None:
        with contextlib.suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Do nothing: the program that read the output has ended. Rich would end this process."""


def wait_to_restart(console: Console) -> None:
    """Wait before a new attempt after an error. SIGINT and SIGTERM end this process meanwhile."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ray may have replaced the handlers
        signal.signal(number, signal.SIG_DFL)
    console.print(f"starting again in {_RESTART_DELAY:g} s", highlight=False)
    time.sleep(_RESTART_DELAY)


def restart(environment: Mapping[str, str], options: Sequence[str] = ()) -> NoReturn:
    """Replace this process by a new driver: same process id, same command line and ``options`` after it."""
    # `appliance reload` sends SIGHUP, which would end the new driver before it has a handler. At a terminal,
    # SIGHUP also means that the terminal was closed.
    if not os.isatty(0):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # reap the killed children
            pass
    for entry in list(Path("/proc/self/fd").iterdir()):  # some libraries leave inheritable descriptors open
        with contextlib.suppress(OSError):
            os.set_inheritable(int(entry.name), int(entry.name) <= 2)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the output may be a file on a full disk
            stream.flush()
    os.execve(sys.executable, [*sys.orig_argv, *options], environment)  # noqa: S606 - no shell is needed
