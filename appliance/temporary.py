"""The appliance's own folder among temporary files.

The folder for temporary files is shared by all users of a machine, and libraries trust what they find there:
Ray opens its session folders to everybody. So everything temporary lies in one folder that only this user may
enter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from appliance.errors import ApplianceError

__all__ = ["make", "use"]


def make(home: Path) -> Path:
    """Return the empty temporary folder of the appliance with this data folder; nobody else may enter it.

    Its path is short, because Ray's sockets lie deep below it and paths of sockets end at 107 bytes.

    Raises:
        ApplianceError: it cannot be made, or someone else has put something in its place.
    """
    mark = hashlib.sha256(str(home).encode()).hexdigest()[:8]
    try:
        path = Path(tempfile.gettempdir()) / f"appliance-{os.geteuid()}-{mark}"
    except FileNotFoundError as error:
        raise ApplianceError(f"{error.strerror}; set TMPDIR to a folder that can be written") from error
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        _take_back(path)
    except OSError as error:
        raise ApplianceError(
            f"the folder for temporary files, {path}, cannot be made: {error.strerror}; set TMPDIR to another"
        ) from error
    return path


def use(path: Path) -> None:
    """Have this process and those that it starts put their temporary files into ``path``."""
    os.environ["TMPDIR"] = str(path)
    tempfile.tempdir = None  # it may have been looked up already


def _take_back(path: Path) -> None:
    """Empty the folder of an earlier run."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _planted(path) from error
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            raise _planted(path)
        os.fchmod(folder, 0o700)  # first, so that nobody else changes what is then removed
    finally:
        os.close(folder)
    try:
        for child in path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
    except OSError as error:
        raise ApplianceError(
            f"{error.filename or path} of an earlier run cannot be removed: {error.strerror}; remove it"
        ) from error


def _planted(path: Path) -> ApplianceError:
    return ApplianceError(
        f"{path} is not a folder of the user who starts the appliance: see who made it and remove it, "
        "or set TMPDIR to a folder that nobody else may write"
    )
