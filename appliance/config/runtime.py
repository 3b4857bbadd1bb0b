"""The config in force after reloads, in ``run/config.json``, for gateways and zygotes that start later.

It holds the validated values, because models.yaml may be edited, and be invalid, at any time.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from appliance.config.sections import Config

_NAME: Final = "config.json"


def write(run_dir: Path, config: Config) -> None:
    """Store ``config`` as the config in force."""
    fresh = run_dir / f".{_NAME}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(config.model_dump_json())
    fresh.rename(run_dir / _NAME)


def read(run_dir: Path, started_with: Config) -> Config:
    """Return the config in force: the stored one, or ``started_with`` if none is stored."""
    try:
        text = (run_dir / _NAME).read_bytes()
    except FileNotFoundError:
        return started_with
    return Config.model_validate(
        json.loads(text)
    )  # as values of YAML: strict JSON would want paths otherwise


def forget(run_dir: Path) -> None:
    """Remove the stored config when a new run of the appliance starts."""
    (run_dir / _NAME).unlink(missing_ok=True)
