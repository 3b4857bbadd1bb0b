"""Permissions of the data folder: what is in it is for the user of the appliance alone."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

#: Folders in the data folder whose content is fetched or built, and holds nothing of a caller: other programs
#: may have the same files under other names. The folders themselves are closed.
_PUBLIC: Final = frozenset({"weights", "cog", "cache"})
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def restrict() -> None:
    """Give what this process and its children write from now on to this user alone."""
    os.umask(_OTHERS)


def tighten(home: Path) -> None:
    """Take the permissions of other users from the data folder and from what lies in it already."""
    home = home.resolve()  # it may be a link itself
    kept = sum(not _close(path) for path in (home, *_content(home)))
    if kept:
        _log.warning(
            "%d files of the data folder %s stay open to other users because they belong to another one: "
            "have their owner take these permissions away (chmod -R go= %s)",
            kept,
            home,
            home,
        )


def _content(home: Path) -> list[Path]:
    """Everything in ``home``, without what is below a public folder or behind a link."""
    found: list[Path] = []
    for folder, folders, files in os.walk(home):
        here = Path(folder)
        found += (here / name for name in (*folders, *files))
        if here == home:
            folders[:] = [name for name in folders if name not in _PUBLIC]
    return found


def _close(path: Path) -> bool:
    """Whether ``path`` is closed to others, or a link, or gone."""
    try:
        mode = path.lstat().st_mode
        if mode & _OTHERS and not stat.S_ISLNK(mode):
            path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
    except FileNotFoundError:
        pass
    except PermissionError:
        return False
    return True
