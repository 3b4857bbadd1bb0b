"""The lock of a data folder. The driver of a running appliance holds the lock, and so does a repair."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from appliance.domain.errors import ApplianceError


def path(home: Path) -> Path:
    return home / "run" / "lock"


def take(home: Path) -> IO[str]:
    """Lock the data folder until the returned file is closed.

    Raises:
        ApplianceError: another process has locked the data folder, or this user cannot lock it.
    """
    try:
        path(home).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path(home).touch(mode=0o600)
        file = path(home).open("a+")
    except OSError as error:
        raise ApplianceError(
            f"the data folder {home} cannot be locked: {error.filename}: {error.strerror}: run the command "
            "as the user who runs the appliance"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise ApplianceError(
            f"another appliance (pid {holder}) uses the data folder {home}: "
            "stop that appliance, or choose another data folder with --home"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def is_taken(home: Path) -> bool:
    """Return whether an appliance uses the data folder, or may use it: this user cannot read the lock."""
    try:
        with path(home).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
