"""Package indexes for uv: those that ``scripts/install`` uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_INDEXES: Final = ("UV_DEFAULT_INDEX", "UV_FIND_LINKS")
_TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"


def uv_variables(variables: Mapping[str, str], *, cpu: bool) -> dict[str, str]:
    """Return the environment variables for uv, which does not read pip's variables.

    With ``cpu``, uv also uses pip's folder of wheels, which may have torch for CPUs.
    """
    mapped = {**variables, "UV_NO_CONFIG": "1"}
    if not variables.get("UV_DEFAULT_INDEX") and not variables.get("UV_INDEX_URL"):
        mapped["UV_DEFAULT_INDEX"] = variables.get("PIP_INDEX_URL", "")
    if not variables.get("UV_FIND_LINKS"):  # a folder of CPU wheels would be preferred for GPUs too
        mapped["UV_FIND_LINKS"] = variables.get("PIP_FIND_LINKS", "") if cpu else ""
    return {name: value for name, value in mapped.items() if value or name not in _INDEXES}


def torch_options(*, cpu: bool) -> list[str]:
    """Return uv's options with the index of torch for CPUs, unless a folder of wheels has torch for CPUs."""
    if not cpu:
        return []
    folder = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
    if folder and any(Path(folder).glob("torch-*+cpu*.whl")):
        return []
    url = os.environ.get("APPLIANCE_TORCH_INDEX", _TORCH_INDEX)
    return ["--extra-index-url", url, "--index-strategy", "unsafe-best-match"]
