"""What process groups take of main memory, and whether the kernel has ended processes for want of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_KIB: Final = 1024


class Resident(NamedTuple):
    """Bytes of main memory; pages that are shared with others are counted in part."""

    firm: int  # only the end of the processes frees it
    files: int  # of files that are mapped, such as weights: the kernel can drop them and read them again


def members(group: int) -> list[int]:
    """The processes of a group."""
    processes = (int(folder.name) for folder in _PROC.iterdir() if folder.name.isdecimal())
    return [pid for pid in processes if _group(pid) == group]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):  # gone meanwhile, or another user's
        return None


def resident(group: int) -> Resident:
    """What a process group takes. Reads every page table entry: milliseconds for each GiB."""
    firm = files = 0
    for pid in members(group):
        sizes = _sizes(pid, "smaps_rollup")
        firm += sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)
        files += sizes.get("Pss_File", 0)
    return Resident(firm, files)


def roughly(group: int) -> int:
    """At least what ``resident`` says is firm, at once: shared pages are counted whole in each process."""
    total = 0
    for pid in members(group):
        sizes = _sizes(pid, "status")
        total += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
    return total


def _sizes(pid: int, file: str) -> dict[str, int]:
    """The lines "Name:  123 kB" of a file about a process, in bytes; none of one that is gone."""
    try:
        lines = (_PROC / str(pid) / file).read_text().splitlines()
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return {}
    words = (line.split() for line in lines)
    return {each[0].rstrip(":"): int(each[1]) * _KIB for each in words if len(each) == 3 and each[2] == "kB"}


def available(proc: Path = _PROC) -> int:
    """Bytes of main memory that the kernel can still give without swapping."""
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * _KIB
    raise RuntimeError("/proc/meminfo has no MemAvailable, which Linux has had since 3.14")


def kernel_kills(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """How many processes the kernel has ended for want of memory: in this cgroup, else on this machine."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # a kernel without cgroups
        lines = []
    groups = [line[3:].lstrip("/") for line in lines if line.startswith("0::")]
    for file in (*(cgroups / group / "memory.events" for group in groups), proc / "vmstat"):
        try:
            counts = dict(line.split() for line in file.read_text().splitlines())
        except OSError:  # the root cgroup has no such file, nor has v1
            continue
        if "oom_kill" in counts:
            return int(counts["oom_kill"])
    return 0
