"""Checks of the paths and names that an agent gets from other machines."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from appliance.domain.errors import NodeError

_SOCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME_BYTES: Final = 255  # that file systems allow in the name of a file


def socket_path(run_dir: Path, name: str) -> Path:
    """Return the path of a socket in ``run_dir``.

    Raises:
        NodeError: ``name`` is not a plain file name.
    """
    if not _SOCKET.fullmatch(name):
        raise NodeError(f"{name!r} is not the name of a socket")
    return run_dir / name


def file_name(name: str) -> str:
    """Return ``name`` if it can be the name of a new file in any folder.

    Raises:
        NodeError: it cannot, for example because it contains a slash.
    """
    if name in {"", ".", ".."} or "/" in name or "\0" in name or len(os.fsencode(name)) > _NAME_BYTES:
        raise NodeError(f"{name!r} is not a file name")
    return name


def relative_name(name: str) -> Path:
    """Return the relative path ``name`` if it stays below the folder to which it is relative.

    Raises:
        NodeError: it does not.
    """
    return Path(*map(file_name, name.split("/")))


def digest(text: str) -> str:
    """Return ``text`` if it is a SHA-256 in hexadecimal digits.

    Raises:
        NodeError: it is not.
    """
    if not _DIGEST.fullmatch(text):
        raise NodeError(f"{text[:80]!r} is not a SHA-256")
    return text


def open_below(path: str, folders: Sequence[Path]) -> IO[bytes]:
    """Open a regular file of this user in one of ``folders``, also if a model changes links meanwhile.

    Raises:
        NodeError: it is not such a file, or it does not exist.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise NodeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        opened = Path(f"/proc/self/fd/{descriptor}").readlink()
        status = os.fstat(descriptor)
        if not _is_below(opened, folders):
            raise NodeError(f"{path} is not in a folder whose files the agent may send")
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise NodeError(f"{path} is not a regular file of the user who runs the appliance")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def remove_below(path: str, folders: Sequence[Path]) -> None:
    """Delete a file or folder in one of ``folders``, and the folders between that are empty then.

    Raises:
        NodeError: the path is not in one of ``folders``, or the file cannot be deleted.
    """
    given = Path(path)
    parent = Path(os.path.realpath(given.parent))
    folder = next((each for each in folders if _is_below(parent / given.name, [each])), None)
    if folder is None or given.name in {"", ".", ".."}:
        raise NodeError(f"{path} is not in a folder whose files the agent may delete")
    try:
        target = parent / given.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    except OSError as error:
        raise NodeError(f"{path} cannot be deleted: {error.strerror}") from error
    root = Path(os.path.realpath(folder))
    while parent != root:
        try:
            parent.rmdir()
        except OSError:  # not empty, or another request has removed it
            return
        parent = parent.parent


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(Path(os.path.realpath(folder)) in path.parents for folder in folders)
