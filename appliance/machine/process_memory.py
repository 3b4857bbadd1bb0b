"""Main memory of process groups, and the kernel's count of processes that it killed to free memory."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.machine import CGROUPS, cgroup_folders, read_words
from appliance.machine.proc import PROC, pids, read_sizes, read_stat


def members(group: int) -> list[int]:
    """Return the ids of the processes in a process group."""
    return [pid for pid in pids() if _group(pid) == group]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):  # it has ended, or belongs to another user
        return None


def inherited(pid: int) -> int:
    """Return the bytes that a forked process shares with its parent; 0 if it was not forked.

    A worker process shares them with the zygote and the other worker processes. Once all of these have ended,
    it shares them with nobody.
    """
    stat = read_stat(pid)
    parent = None if stat is None else read_stat(stat.parent)
    if stat is None or parent is None or parent.stack != stat.stack:
        return 0
    return read_sizes(stat.parent, "status").get("RssAnon", 0)


def anonymous(group: int, inherited: int = 0) -> int:
    """Return the bytes of main memory that only the end of a process group frees.

    ``inherited`` bytes are subtracted for the leader and for each process that it forked. Pages that forked
    processes of the group share with each other are counted in each of them.
    """
    leader = read_stat(group)
    total = shared = 0
    for pid in members(group):
        sizes, stat = read_sizes(pid, "status"), read_stat(pid)
        forked = leader is not None and stat is not None and stat.stack == leader.stack
        total += max(0, sizes.get("RssAnon", 0) - inherited * forked)
        shared = max(shared, sizes.get("RssShmem", 0))
    return total + shared


def file_backed(group: int) -> int:
    """Return the bytes of files, such as weights, that only this process group maps.

    The kernel can drop these pages and read them again. This reads every page table entry: milliseconds for
    each GiB.
    """
    return sum(read_sizes(pid, "smaps_rollup").get("Private_Clean", 0) for pid in members(group))


def kernel_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how many processes of this cgroup, or else of this machine, the kernel killed to free memory."""
    # Cgroups version 1 and the root cgroup have no such file.
    files = [folder / "memory.events" for folder in cgroup_folders("memory", cgroups, proc)]
    for words in map(read_words, (*files, proc / "vmstat")):
        if "oom_kill" in words:
            return int(words[words.index("oom_kill") + 1])
    return 0
