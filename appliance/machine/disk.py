"""Disk usage of the data folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from appliance.domain.errors import DiskFull

#: Seconds for which measured sizes are reused. Measuring is slow if the folder holds many files.
FRESH: Final = 60.0
_LEAST: Final = 1024 * 1024  # bytes; a disk with less free space is regarded as full
_BLOCK: Final = 512  # bytes, the unit of st_blocks on every file system


class DiskUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of the data folder and its disk, in bytes."""

    folder: str  # absolute path of the data folder
    total: int  # of the disk
    free: int  # of the disk
    parts: dict[str, int]  # size by name of a subfolder; the files are in "database" and "others"


class DiskSpace(NamedTuple):
    """Sizes in bytes."""

    total: int
    free: int


class Storage:
    """Measures the data folder ``home`` and its disk."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._measured: tuple[float, dict[str, int]] | None = None  # time and sizes of the parts

    def disk(self) -> DiskSpace:
        total, _, free = shutil.disk_usage(self._home)
        return DiskSpace(total, free)

    async def usage(self) -> DiskUsage:
        """Return the current usage. The sizes of subfolders may be a minute old.

        Links are not followed, so weights outside of the data folder are not counted.
        """
        now = time.monotonic()
        if self._measured is None or now - self._measured[0] > FRESH:
            self._measured = now, await asyncio.to_thread(_parts, self._home)
        disk = self.disk()
        return DiskUsage(folder=str(self._home), total=disk.total, free=disk.free, parts=self._measured[1])


def full(folder: Path) -> bool:
    """Return whether the disk of ``folder``, or a quota on it, is full. Writes a temporary file of 1 MiB."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(_LEAST))
    except OSError as error:
        return DiskFull.is_cause_of(error)
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
    """Return the bytes on disk of a file, or of a folder with its content.

    ``seen`` has the files that were counted already, so that hard links to one file count once.
    """
    try:
        facts = entry.stat(follow_symlinks=False)
        if (facts.st_dev, facts.st_ino) in seen:
            return 0
        seen.add((facts.st_dev, facts.st_ino))
        size = facts.st_blocks * _BLOCK
        if entry.is_dir(follow_symlinks=False):
            with os.scandir(entry) as entries:
                size += sum(_size(inner, seen) for inner in entries)
    except OSError:  # the file was removed, or this user cannot read it
        return 0
    return size
