"""Reads the output of a model's worker processes from their log files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: Bytes at the end of a log file that are read at most.
TAIL: Final = 512 * 1024
LONGEST: Final = 64 * 1024  # bytes of a line


def log_folder(run_dir: Path) -> Path:
    return run_dir / "logs"


def log_file(run_dir: Path, instance: str) -> Path:
    """Return the log file of an instance of a model, such as ``owner/name`` or ``owner/name#2``."""
    return log_folder(run_dir) / f"{instance.replace('/', '--')}.log"


def instances(run_dir: Path, model: str) -> list[str]:
    """Return the instances and versions of a model that have a log file, the model itself first."""
    first = log_file(run_dir, model).stem
    found = []
    for file in log_folder(run_dir).glob("*.log"):
        suffix = file.stem.removeprefix(first)
        if file.stem.startswith(first) and suffix[:1] in {"", "#", "@"}:
            found.append(model + suffix)
    return sorted(found)


class LogReader:
    """Reads complete lines of one log file, first those at its end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._place: tuple[int, int] | None = None  # inode, and number of bytes that were read
        self._rest = b""  # begin of a line that is not complete
        self._skipping = False  # until the end of a line whose begin was not read, or that is too long

    def read(self) -> list[str]:
        """Return the lines since the last call, a progress bar only in its last state.

        A line counts when it is complete. Lines longer than ``LONGEST`` are left out, and so is the line in
        which reading begins: half a line could contain half a secret, which nothing would recognize.
        """
        try:
            with self._file.open("rb") as file:
                status = os.fstat(file.fileno())
                start = self._start(status)
                file.seek(start)
                received = file.read(TAIL)
                self._place = status.st_ino, start + len(received)
        except FileNotFoundError:
            return []
        *lines, self._rest = (self._rest + received).split(b"\n")
        if self._skipping and lines:
            lines, self._skipping = lines[1:], False
        if self._skipping or len(self._rest) > LONGEST:
            self._rest, self._skipping = b"", True
        return [
            line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
            for line in lines
            if len(line) <= LONGEST
        ]

    def _start(self, status: os.stat_result) -> int:
        """Return where to read on: at the begin of a new file, if the file was rotated or emptied."""
        if self._place is None:
            start = max(0, status.st_size - TAIL)
            self._skipping = start > 0
            return start
        inode, read = self._place
        if inode == status.st_ino and read <= status.st_size:
            return read
        self._rest, self._skipping = b"", False
        return 0
