"""Main memory of process groups, and the kernel's count of processes that it killed to free memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_KIB: Final = 1024


def members(group: int) -> list[int]:
    """The processes of a group."""
    processes = (int(folder.name) for folder in _PROC.iterdir() if folder.name.isdecimal())
    return [pid for pid in processes if _group(pid) == group]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):  # gone meanwhile, or another user's
        return None


def inherited(pid: int) -> int:
    """Bytes that a process has from its parent, which has forked it; none of one that has begun anew.

    A host shares them with the zygote and its other hosts, and with nobody once these are gone.
    """
    look = _look(pid)
    parent = None if look is None else _look(look.parent)
    if look is None or parent is None or parent.stack != look.stack:
        return 0
    return _sizes(look.parent, "status").get("RssAnon", 0)


def anonymous(group: int, inherited: int = 0) -> int:
    """Bytes of main memory of a process group that only its end frees, without those ``inherited`` by it.

    Pages of theirs that forked processes of the group share are counted in each.
    """
    leader = _look(group)
    total = shared = 0
    for pid in members(group):
        sizes, look = _sizes(pid, "status"), _look(pid)
        fork = leader is not None and look is not None and look.stack == leader.stack
        total += max(0, sizes.get("RssAnon", 0) - inherited * fork)
        shared = max(shared, sizes.get("RssShmem", 0))
    return total + shared


def file_backed(group: int) -> int:
    """Bytes of files, such as weights, that no other process maps: the kernel can drop and read them again.

    Reads every page table entry: milliseconds for each GiB.
    """
    return sum(_sizes(pid, "smaps_rollup").get("Private_Clean", 0) for pid in members(group))


class _Look(NamedTuple):
    parent: int
    stack: int  # where it begins: the same in a forked process, and chance in one that has begun anew


def _look(pid: int) -> _Look | None:
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return None
    return _Look(int(fields[1]), int(fields[25]))


def _sizes(pid: int, file: str) -> dict[str, int]:
    """The lines "Name:  123 kB" of a file about a process, in bytes; none of one that is gone."""
    try:
        lines = (_PROC / str(pid) / file).read_text().split("\n")
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return {}
    words = (line.split() for line in lines)
    return {each[0].rstrip(":"): int(each[1]) * _KIB for each in words if len(each) == 3 and each[2] == "kB"}


def available(proc: Path = _PROC) -> int:
    """Bytes of main memory that the kernel can still give without swapping."""
    for line in (proc / "meminfo").read_text().split("\n"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * _KIB
    raise RuntimeError("/proc/meminfo has no MemAvailable, which Linux has had since 3.14")


def kernel_kills(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """How many processes the kernel has ended for want of memory: in this cgroup, else on this machine."""
    try:
        lines = (proc / "self" / "cgroup").read_text().split("\n")
    except OSError:  # a kernel without cgroups
        lines = []
    groups = [line[3:].lstrip("/") for line in lines if line.startswith("0::")]
    for file in (*(cgroups / group / "memory.events" for group in groups), proc / "vmstat"):
        try:
            counts = dict(line.split() for line in file.read_text().strip().split("\n"))
        except OSError:  # the root cgroup has no such file, nor has v1
            continue
        if "oom_kill" in counts:
            return int(counts["oom_kill"])
    return 0
