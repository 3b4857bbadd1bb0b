"""Look at processes of this machine, and kill those that an appliance has left behind."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Final

import psutil

_PATIENCE: Final = 5.0  # seconds for killed processes to free their memory and ports


def is_running(pid: int) -> bool:
    """Return whether there is such a process; a zombie counts as ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it has ended, or belongs to another user and is hidden
        return False


def kill_marked(variable: str, value: str) -> list[int]:
    """Kill all other processes that started with ``variable=value`` in their environment; return their ids.

    Returns when they have ended, or after 5 seconds. Ray's agents, for example, outlive a driver that was
    killed. The caller must be the only one who may have started such processes: the driver, for example,
    holds the lock on the data folder.
    """
    killed: list[int] = []
    # A process may start another one before it is killed.
    while found := [process for process in _marked(variable, value) if process.pid not in killed]:
        ended = _kill(found)
        killed += ended
        if not ended:  # the system does not let this process kill them
            break
    return killed


def _marked(variable: str, value: str) -> list[psutil.Process]:
    found = []
    for pid in psutil.pids():  # not process_iter, whose cached processes may have had the same id before
        with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
            process = psutil.Process(pid)
            if pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
    return found


def _kill(processes: list[psutil.Process]) -> list[int]:
    """Kill processes, wait for their ends, and return the ids of those that could be killed.

    psutil's own ``wait`` would reap those that are children, whose exit codes others wait for.
    """
    ends = select.poll()  # a pidfd is readable when all threads have ended: only then sockets are closed
    killed = []
    with contextlib.ExitStack() as opened:
        left = set()
        for process in processes:
            with contextlib.suppress(psutil.Error, ProcessLookupError):  # it has ended
                descriptor = os.pidfd_open(process.pid)
                opened.callback(os.close, descriptor)
                process.kill()
                killed.append(process.pid)
                ends.register(descriptor, select.POLLIN)
                left.add(descriptor)
        deadline = time.monotonic() + _PATIENCE
        while left and (seconds := deadline - time.monotonic()) > 0:
            for descriptor, _ in ends.poll(1000 * seconds):
                ends.unregister(descriptor)
                left.remove(descriptor)
    return killed
