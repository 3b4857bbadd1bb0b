"""Reads data of processes from /proc.

psutil is not used here, because it has neither ``RssAnon`` nor ``Private_Clean`` nor start times in clock
ticks, and because its import takes longer than reading one file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
_KIB: Final = 1024


class ProcessStat(NamedTuple):
    """Some fields of ``/proc/<pid>/stat``, explained in proc_pid_stat(5)."""

    state: str  # "Z" is a zombie
    parent: int
    group: int
    session: int
    start: int  # start time in clock ticks since boot, which does not change when the clock is set
    stack: int  # address where the stack begins; a fork keeps it, an exec chooses a random address


def pids() -> list[int]:
    return [int(folder.name) for folder in PROC.iterdir() if folder.name.isdecimal()]


def read_stat(pid: int) -> ProcessStat | None:
    """Return None if there is no such process, or if this user may not read its data."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return None
    # Field 2, the program's name in parentheses, may contain any character. Field 3 comes after the last ")".
    fields = text.rpartition(")")[2].split()
    numbers = (int(fields[number - 3]) for number in (4, 5, 6, 22, 28))
    return ProcessStat(fields[0], *numbers)


def read_sizes(pid: int, file: str) -> dict[str, int]:
    """Return the sizes in ``/proc/<pid>/<file>`` in bytes, by name; empty if there is no such process.

    A line with a size has the form "Name:  123 kB".
    """
    try:
        lines = (PROC / str(pid) / file).read_text().split("\n")
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return {}
    words = (line.split() for line in lines)
    return {each[0].rstrip(":"): int(each[1]) * _KIB for each in words if len(each) == 3 and each[2] == "kB"}
