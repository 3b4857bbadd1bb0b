"""Permissions of the data folder: only the user of the appliance may open its files."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

#: Folders in the data folder with downloads and builds, without data of API users. The permissions of their
#: files are not changed, because other programs may have hard links to them. Only the folders are closed.
_PUBLIC: Final = frozenset({"weights", "cog", "cache"})
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def restrict() -> None:
    """Set the umask, so that only this user can open files that this process and its children create."""
    os.umask(_OTHERS)


def tighten(home: Path) -> None:
    """Remove the permissions of all other users from the data folder and its existing files.

    Files that belong to another user are skipped, with a warning.
    """
    home = home.resolve()  # the data folder may be a link
    kept = sum(not _close(path) for path in (home, *_content(home)))
    if kept:
        _log.warning(
            "other users may be able to open %d files of the data folder %s. The appliance cannot change "
            "their permissions, because it does not own them: as their owner, run chmod -R go= %s",
            kept,
            home,
            home,
        )


def _content(home: Path) -> list[Path]:
    """Return all files and folders in ``home``, without the content of public and of linked folders."""
    found: list[Path] = []
    for folder, folders, files in os.walk(home):
        here = Path(folder)
        found += (here / name for name in (*folders, *files))
        if here == home:
            folders[:] = [name for name in folders if name not in _PUBLIC]
    return found


def _close(path: Path) -> bool:
    """Remove other users' permissions for ``path``; return False if the permissions cannot be changed."""
    try:
        mode = path.lstat().st_mode
        if mode & _OTHERS and not stat.S_ISLNK(mode):
            path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
    except FileNotFoundError:
        pass
    except PermissionError:
        return False
    return True
