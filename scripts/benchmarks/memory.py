"""Main memory and processor time of the idle appliance by role of process.

The memory is the proportional set size (PSS). The processor time is a percentage of one core.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from scripts.benchmarks import servers
from scripts.benchmarks.cold_start import LANGUAGE, output
from tests.support.appliance_process import Appliance

_INTERVAL: Final = 5.0  # seconds
_IDLE: Final = 0.5  # seconds of processor time of all processes in an interval, at most
_IDLE_SECONDS: Final = 40.0  # for which the processor time of the idle appliance is measured
_MIB: Final = 1024**2
#: A part of the command line -> what the process is; the first that fits counts.
_ROLES: Final = (
    ("VLLM::", "worker process"),
    ("ServeReplica:gateway", "gateway"),
    ("ServeReplica:runner", "runner replicas"),
    ("ServeController", "Serve controller"),
    ("appliance.driver.main", "driver"),
    ("appliance.worker.zygote", "zygote and worker processes"),
    ("ray", "Ray"),
)


def measure(console: Console) -> dict[str, Any]:
    """With no model loaded, and with the default language model."""
    with servers.appliance(shipped=True) as running:
        idle, idle_cpu = _idle(running)
        output(running, LANGUAGE)
        loaded, loaded_cpu = _idle(running)
    _print(console, "main memory, MiB", idle, loaded, _MIB, 0)
    _print(console, "processor time while idle, % of a core", idle_cpu, loaded_cpu, 0.01, 2)
    return {
        "idle": {**idle, "all": sum(idle.values())},
        "loaded": {**loaded, "all": sum(loaded.values())},
        "idle_processor": {**idle_cpu, "all": sum(idle_cpu.values())},
        "loaded_processor": {**loaded_cpu, "all": sum(loaded_cpu.values())},
    }


def _idle(running: Appliance) -> tuple[dict[str, int], dict[str, float]]:
    """Wait until the appliance is idle; return its memory in bytes and its processor time, both by role.

    The processor time is in seconds per second.
    """
    _wait_until_idle(running)
    memory = by_role(running)
    before = _processor_times(running)
    time.sleep(_IDLE_SECONDS)
    after = _processor_times(running)
    return memory, {role: (after[role] - before.get(role, 0.0)) / _IDLE_SECONDS for role in after}


def _print(
    console: Console, title: str, idle: dict[str, Any], loaded: dict[str, Any], unit: float, digits: int
) -> None:
    table = Table("process", "no model", "default model", title=title)
    rows = {role: (idle.get(role, 0), loaded.get(role, 0)) for role in dict.fromkeys([*idle, *loaded])}
    for role, values in rows.items():
        table.add_row(role, *(f"{value / unit:.{digits}f}" for value in values))
    table.add_section()
    table.add_row("all", *(f"{sum(each.values()) / unit:.{digits}f}" for each in (idle, loaded)))
    console.print(table)


def _wait_until_idle(running: Appliance) -> None:
    """Wait until the zygote has imported all modules, and nothing else computes."""
    while True:
        before = sum(_processor_times(running).values())
        time.sleep(_INTERVAL)
        if sum(_processor_times(running).values()) - before < _IDLE:
            return


def _processor_times(running: Appliance) -> dict[str, float]:
    """Return the seconds of processor time that the processes have used, by role."""
    found: dict[str, float] = {}
    for process in running.processes():
        with contextlib.suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            role = _role(process)
            found[role] = found.get(role, 0.0) + times.user + times.system
    return found


def _role(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    return next((role for part, role in _ROLES if part in command), "others")


def by_role(running: Appliance) -> dict[str, int]:
    """Bytes by role, over every process of the appliance."""
    found: dict[str, int] = {}
    for process in running.processes():
        try:
            role = _role(process)
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (psutil.Error, OSError):  # it has just ended
            continue
        match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        found[role] = found.get(role, 0) + (int(match[1]) * 1024 if match else 0)
    return dict(sorted(found.items(), key=lambda item: -item[1]))
