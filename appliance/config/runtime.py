"""The runtime config: the last valid models.yaml, stored in ``run/config.json`` at each reload.

Gateways and zygotes that start after a reload read this file. models.yaml may have been edited since, and may
be invalid.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from appliance.config.sections import Config

_NAME: Final = "config.json"


def write(run_dir: Path, config: Config) -> None:
    fresh = run_dir / f".{_NAME}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(config.model_dump_json())
    fresh.rename(run_dir / _NAME)


def read(run_dir: Path, started_with: Config) -> Config:
    """Return the stored runtime config, or ``started_with`` if no reload has stored one."""
    try:
        text = (run_dir / _NAME).read_bytes()
    except FileNotFoundError:
        return started_with
    # Not `model_validate_json`: it refuses the Path objects into which `values.FilePath` converts text.
    return Config.model_validate(json.loads(text))


def forget(run_dir: Path) -> None:
    (run_dir / _NAME).unlink(missing_ok=True)
