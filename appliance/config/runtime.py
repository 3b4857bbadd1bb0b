"""The config that a reload has put in force, for what starts after it: a gateway that takes over, a zygote.

It is kept as checked values, not as the file: that may be edited again at any time, and be wrong.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from appliance.config.sections import Config

_NAME: Final = "config.json"


def write(run_dir: Path, config: Config) -> None:
    """Put ``config`` in force for whatever this run of the appliance starts from now on."""
    fresh = run_dir / f".{_NAME}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(config.model_dump_json())
    fresh.rename(run_dir / _NAME)


def read(run_dir: Path, started_with: Config) -> Config:
    """What is in force: what was written last, else what the appliance was started with."""
    try:
        text = (run_dir / _NAME).read_bytes()
    except FileNotFoundError:
        return started_with
    return Config.model_validate(
        json.loads(text)
    )  # as values of YAML: strict JSON would want paths otherwise


def forget(run_dir: Path) -> None:
    """A new run begins with its own file."""
    (run_dir / _NAME).unlink(missing_ok=True)
