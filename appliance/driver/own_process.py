"""What the drivers of an appliance and of a node do with their own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from appliance.domain.errors import ApplianceError

#: Environment variable with the data folder, by which all processes of an appliance are found and killed.
HOME_MARK: Final = "APPLIANCE_SERVES"


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


def restart(environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by a new driver with the same command line and process id."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:  # reap the killed children
            pass
    for entry in list(Path("/proc/self/fd").iterdir()):  # some libraries leave inheritable descriptors open
        with contextlib.suppress(OSError):
            os.set_inheritable(int(entry.name), int(entry.name) <= 2)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, sys.orig_argv, environment)  # noqa: S606 - no shell is needed
