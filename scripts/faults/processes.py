"""The processes of an appliance by role, and faults that can be injected into them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Final

import psutil

from tests.support.appliance_process import Appliance, wait_for


def _driver(appliance: Appliance) -> list[int]:
    return [] if appliance.process is None else [appliance.process.pid]


def _with(words: str) -> Callable[[Appliance], list[int]]:
    return lambda appliance: [process.pid for process in appliance.named(words)]


def _called(name: str) -> Callable[[Appliance], list[int]]:
    def found(appliance: Appliance) -> list[int]:
        pids = []
        for process in appliance.processes():
            with contextlib.suppress(psutil.Error):
                if process.name() == name:
                    pids.append(process.pid)
        return pids

    return found


def _zygote(appliance: Appliance) -> list[int]:
    workers = appliance.worker_pids()  # workers are forked, so they have the zygote's command line
    return [
        process.pid for process in appliance.named("-m appliance.worker.zygote") if process.pid not in workers
    ]


#: Role -> function that finds its processes.
ROLES: Final[dict[str, Callable[[Appliance], list[int]]]] = {
    "driver": _driver,
    "gateway": _with("ServeReplica:gateway"),
    "replica": _with("ServeReplica:runner"),
    "worker": Appliance.worker_pids,
    "zygote": _zygote,
    "ui": _with("-m appliance.ui"),
    "raylet": _called("raylet"),
    "gcs": _called("gcs_server"),
    "controller": _with("ServeController"),
}
FAULTS: Final = ("kill", "stop")


def put(appliance: Appliance, role: str, fault: str, stopped: float) -> float:
    """Kill the processes of a role, or stop them for ``stopped`` seconds; return the time of the end."""
    pids = wait_for(lambda: ROLES[role](appliance), f"a process of the {role}", 30)
    if fault == "kill":
        _send(pids, signal.SIGKILL)
        return time.monotonic()
    _send(pids, signal.SIGSTOP)
    time.sleep(stopped)
    _send(pids, signal.SIGCONT)
    return time.monotonic()


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
