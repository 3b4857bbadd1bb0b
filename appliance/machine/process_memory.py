"""Main memory of process groups, and how many processes the kernel killed to free memory."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.machine import CGROUPS, cgroup_folders, read_words
from appliance.machine.proc import PROC, pids, read_sizes, read_stat


def members(group: int) -> list[int]:
    return [pid for pid in pids() if _group(pid) == group]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):  # the process has ended, or belongs to another user
        return None


def inherited(pid: int) -> int:
    """Return the bytes that a forked process shares with its parent; 0 if the process was not forked.

    For a worker process this is the memory of the zygote. The number may be too high after the zygote and all
    other worker processes have ended, because then the memory is no longer shared.
    """
    stat = read_stat(pid)
    parent = None if stat is None else read_stat(stat.parent)
    if stat is None or parent is None or parent.stack != stat.stack:
        return 0
    return read_sizes(stat.parent, "status").get("RssAnon", 0)


def anonymous(group: int, inherited: int = 0) -> int:
    """Return the bytes of anonymous and shared memory of a process group.

    Unlike ``file_backed``, this memory is freed only when the processes end. ``inherited`` bytes are
    subtracted for the leader and each process that it forked. Pages that several processes of the group share
    after a fork are counted once for each process.
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
    """Return the bytes of mapped files, such as weights, that only one process of the group maps.

    The kernel can drop these pages and read them from disk again. Takes milliseconds for each mapped GiB,
    because the kernel reads every page table entry.
    """
    return sum(read_sizes(pid, "smaps_rollup").get("Private_Clean", 0) for pid in members(group))


def kernel_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return how many processes the kernel has killed to free memory, in this cgroup or else the machine."""
    # Cgroups version 1 and the root cgroup have no memory.events.
    files = [folder / "memory.events" for folder in cgroup_folders("memory", cgroups, proc)]
    for words in map(read_words, (*files, proc / "vmstat")):
        if "oom_kill" in words:
            return int(words[words.index("oom_kill") + 1])
    return 0
