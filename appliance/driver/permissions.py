"""Permissions of the data folder: only the appliance's user may open its files."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

#: Folders in the data folder with downloaded or built content and no data of callers. Their files are left as
#: they are, because other programs may have hard links to them. The folders themselves are closed.
_PUBLIC: Final = frozenset({"weights", "cog", "cache"})
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def restrict() -> None:
    """Allow only this user to open files that this process and its children create from now on."""
    os.umask(_OTHERS)


def tighten(home: Path) -> None:
    """Remove the permissions of other users from the data folder and from its existing files."""
    home = home.resolve()  # the data folder may be a link
    kept = sum(not _close(path) for path in (home, *_content(home)))
    if kept:
        _log.warning(
            "other users can open %d files of the data folder %s because another user owns the files: "
            "have their owner run chmod -R go= %s",
            kept,
            home,
            home,
        )


def _content(home: Path) -> list[Path]:
    """Return all files and folders in ``home``, without those in a public folder or behind a link."""
    found: list[Path] = []
    for folder, folders, files in os.walk(home):
        here = Path(folder)
        found += (here / name for name in (*folders, *files))
        if here == home:
            folders[:] = [name for name in folders if name not in _PUBLIC]
    return found


def _close(path: Path) -> bool:
    """Remove other users' permissions; return whether ``path`` is closed to them, is a link, or is gone."""
    try:
        mode = path.lstat().st_mode
        if mode & _OTHERS and not stat.S_ISLNK(mode):
            path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
    except FileNotFoundError:
        pass
    except PermissionError:
        return False
    return True
