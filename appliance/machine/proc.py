"""Facts about processes, read from /proc.

psutil is not used here: it has neither ``RssAnon`` nor ``Private_Clean`` nor start times in clock ticks, and
importing it takes longer than one of these readings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
_KIB: Final = 1024


class ProcessStat(NamedTuple):
    """The fields of ``/proc/<pid>/stat`` that are used here: proc_pid_stat(5)."""

    state: str  # "Z" is a zombie
    parent: int
    group: int
    session: int
    start: int  # clock ticks since boot; unlike a time of day, it stays the same when the clock is set
    stack: int  # address where the stack begins: kept by a fork, random after an exec


def pids() -> list[int]:
    return [int(folder.name) for folder in PROC.iterdir() if folder.name.isdecimal()]


def read_stat(pid: int) -> ProcessStat | None:
    """Return None if there is no such process, or this user may not see it."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return None
    # The name of the program, in parentheses, may hold anything; field 3 is the first one after it.
    fields = text.rpartition(")")[2].split()
    numbers = (int(fields[number - 3]) for number in (4, 5, 6, 22, 28))
    return ProcessStat(fields[0], *numbers)


def read_sizes(pid: int, file: str) -> dict[str, int]:
    """Return the lines "Name:  123 kB" of ``/proc/<pid>/<file>`` in bytes; empty if the process is gone."""
    try:
        lines = (PROC / str(pid) / file).read_text().split("\n")
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return {}
    words = (line.split() for line in lines)
    return {each[0].rstrip(":"): int(each[1]) * _KIB for each in words if len(each) == 3 and each[2] == "kB"}
