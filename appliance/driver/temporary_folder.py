"""The appliance's own folder for temporary files, which only its user may open.

The system's folder for temporary files is not safe, because all users of the machine share it. Libraries
trust files in it, and Ray lets all users read its session folders.
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
    """Create an empty temporary folder for the appliance with the data folder ``home``.

    The path is short, because Ray creates sockets deep in the folder, and the path of a socket may have at
    most 107 bytes.

    Raises:
        ApplianceError: the folder cannot be created, or another user has created something of its name.
    """
    mark = hashlib.sha256(str(home).encode()).hexdigest()[:8]
    try:
        path = Path(tempfile.gettempdir()) / f"appliance-{os.geteuid()}-{mark}"
    except FileNotFoundError as error:
        raise ApplianceError(
            f"there is no folder for temporary files: {error.strerror}: set TMPDIR to a writable folder"
        ) from error
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        _take_back(path)
    except OSError as error:
        raise ApplianceError(
            f"the temporary folder {path} cannot be created: {error.strerror}: set TMPDIR to another folder"
        ) from error
    return path


def use(path: Path) -> None:
    """Make ``path`` the folder for temporary files of this process and its children."""
    os.environ["TMPDIR"] = str(path)
    tempfile.tempdir = None  # Python may have cached another folder


def _take_back(path: Path) -> None:
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _foreign(path) from error
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            raise _foreign(path)
        os.fchmod(folder, 0o700)  # no other user can change files during the removal
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
            f"{error.filename or path}, left by an earlier run, cannot be removed: {error.strerror}: "
            "remove it, or set TMPDIR to another folder"
        ) from error


def _foreign(path: Path) -> ApplianceError:
    return ApplianceError(
        f"{path} is not a folder of the user who starts the appliance: remove it, or set TMPDIR to a folder "
        "that only this user can write to"
    )
