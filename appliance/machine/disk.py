"""Disk usage of the data folder, by its parts."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

from appliance.domain.errors import DiskFull

#: Seconds for which a count is good enough: a folder may hold a hundred thousand files.
FRESH: Final = 60.0
_LEAST: Final = 1024 * 1024  # bytes; a disk with less free space counts as full
_BLOCK: Final = 512  # bytes, whatever the file system's own are


class DiskUsage(msgspec.Struct, frozen=True, kw_only=True):
    """A look at the disk; everything in bytes."""

    folder: str  # absolute path of the data folder
    total: int
    free: int
    parts: dict[str, int]  # by the name of a folder in it; ``database`` and ``others`` for files


class Storage:
    """The disk below one data folder."""

    def __init__(self, home: Path) -> None:
        """``home`` is the data folder, which must exist when it is looked at."""
        self._home = home
        self._counted: tuple[float, dict[str, int]] | None = None

    async def taken(self) -> DiskUsage:
        """Return the current usage; that of the parts may be a minute old.

        Weights that lie elsewhere, or that a link leads to, are not counted: they are not in this folder.
        """
        now = time.monotonic()
        if self._counted is None or now - self._counted[0] > FRESH:
            self._counted = now, await asyncio.to_thread(_parts, self._home)
        disk = shutil.disk_usage(self._home)
        return DiskUsage(folder=str(self._home), total=disk.total, free=disk.free, parts=self._counted[1])


def full(folder: Path) -> bool:
    """Whether the disk of ``folder``, or a quota on it, is full; found by writing 1 MiB."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(_LEAST))
    except OSError as error:
        return DiskFull.caused(error)
    return False


def _parts(home: Path) -> dict[str, int]:
    parts: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    with os.scandir(home) as entries:
        for entry in entries:
            name = entry.name if entry.is_dir(follow_symlinks=False) else "others"
            name = "database" if entry.name.startswith("appliance.db") else name
            parts[name] = parts.get(name, 0) + _size(entry, seen)
    return dict(sorted(parts.items(), key=lambda part: -part[1]))


def _size(entry: os.DirEntry[str], seen: set[tuple[int, int]]) -> int:
    """Bytes on the disk of a file, or of everything below a folder; what has several names counts once."""
    try:
        facts = entry.stat(follow_symlinks=False)
        if (facts.st_dev, facts.st_ino) in seen:
            return 0
        seen.add((facts.st_dev, facts.st_ino))
        size = facts.st_blocks * _BLOCK
        if entry.is_dir(follow_symlinks=False):
            with os.scandir(entry) as entries:
                size += sum(_size(inner, seen) for inner in entries)
    except OSError:  # it is gone, or not ours to read
        return 0
    return size
