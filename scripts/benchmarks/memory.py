"""Main memory of the idle appliance by role of process, as proportional set size (PSS)."""

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
        _wait_until_idle(running)
        idle = by_role(running)
        output(running, LANGUAGE)
        _wait_until_idle(running)
        loaded = by_role(running)
    table = Table("process", "no model", "default model", title="main memory, MiB")
    for role in dict.fromkeys([*idle, *loaded]):
        table.add_row(role, f"{idle.get(role, 0) / _MIB:.0f}", f"{loaded.get(role, 0) / _MIB:.0f}")
    table.add_section()
    table.add_row("all", f"{sum(idle.values()) / _MIB:.0f}", f"{sum(loaded.values()) / _MIB:.0f}")
    console.print(table)
    return {"idle": {**idle, "all": sum(idle.values())}, "loaded": {**loaded, "all": sum(loaded.values())}}


def _wait_until_idle(running: Appliance) -> None:
    """Wait until the zygote has imported all modules, and nothing else computes."""
    while True:
        before = _processor_time(running)
        time.sleep(_INTERVAL)
        if _processor_time(running) - before < _IDLE:
            return


def _processor_time(running: Appliance) -> float:
    total = 0.0
    for process in running.processes():
        with contextlib.suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            total += times.user + times.system
    return total


def by_role(running: Appliance) -> dict[str, int]:
    """Bytes by role, over every process of the appliance."""
    found: dict[str, int] = {}
    for process in running.processes():
        try:
            command = " ".join(process.cmdline())
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except (psutil.Error, OSError):  # it has just ended
            continue
        role = next((role for part, role in _ROLES if part in command), "others")
        match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        found[role] = found.get(role, 0) + (int(match[1]) * 1024 if match else 0)
    return dict(sorted(found.items(), key=lambda item: -item[1]))
