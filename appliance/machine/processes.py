"""Finds processes of this machine, and kills processes that an appliance has left behind."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Final

import psutil

_PATIENCE: Final = 5.0  # seconds for killed processes to free their memory and ports


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # the process has ended, or belongs to another user and is hidden
        return False


def kill_marked(variable: str, value: str) -> list[int]:
    """Kill all other processes that started with ``variable=value`` in their environment; return their ids.

    Waits up to 5 seconds until they have ended. Ray's agents, for example, outlive a killed driver. The
    caller must make sure that no other process starts such processes now, for example with a lock.
    """
    killed: list[int] = []
    # A process may start another one before it is killed.
    while found := [process for process in _marked(variable, value) if process.pid not in killed]:
        ended = _kill(found)
        killed += ended
        if not ended:  # this process is not allowed to kill them
            break
    return killed


def _marked(variable: str, value: str) -> list[psutil.Process]:
    found = []
    for pid in psutil.pids():  # process_iter may return a cached process that had the same id before
        with contextlib.suppress(psutil.Error):  # the process has ended, or belongs to another user
            process = psutil.Process(pid)
            if pid != os.getpid() and process.environ().get(variable) == value:
                found.append(process)
    return found


def _kill(processes: list[psutil.Process]) -> list[int]:
    """Kill processes, wait until they have ended, and return the ids of the killed processes.

    psutil's ``wait`` cannot be used, because it reaps child processes, and other code waits for their exit
    codes.
    """
    ends = select.poll()  # a pidfd is readable when all threads have ended, and sockets are closed
    killed = []
    with contextlib.ExitStack() as opened:
        left = set()
        for process in processes:
            with contextlib.suppress(psutil.Error, ProcessLookupError):  # the process has ended
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
