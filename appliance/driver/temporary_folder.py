"""The appliance's own folder among temporary files.

All users of a machine share the system's folder for temporary files. Libraries trust files there, and Ray
lets everybody read its session folders. So all temporary files of the appliance are in one folder that only
its user may enter.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from appliance.domain.errors import ApplianceError

__all__ = ["make", "use"]


def make(home: Path) -> Path:
    """Create an empty temporary folder for the appliance with this data folder; only this user may enter it.

    Its path is short, because Ray's sockets are deep below it and a socket's path has at most 107 bytes.

    Raises:
        ApplianceError: the folder cannot be created, or another user has put something in its place.
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
    """Make ``path`` the folder for temporary files of this process and its children."""
    os.environ["TMPDIR"] = str(path)
    tempfile.tempdir = None  # Python may have cached another folder


def _take_back(path: Path) -> None:
    """Empty the folder of an earlier run."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _planted(path) from error
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            raise _planted(path)
        os.fchmod(folder, 0o700)  # first, so that no other user can change files during the removal
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
