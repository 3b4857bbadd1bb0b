"""The config in force, stored in ``run/config.json`` for gateways and zygotes that start after a reload.

They cannot read models.yaml, because it may have been edited since, and be invalid.
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
    """Return the config in force: the stored one, or ``started_with`` if none is stored."""
    try:
        text = (run_dir / _NAME).read_bytes()
    except FileNotFoundError:
        return started_with
    # Not `model_validate_json`: from JSON, pydantic accepts no Path, which `values.FilePath` makes of text.
    return Config.model_validate(json.loads(text))


def forget(run_dir: Path) -> None:
    """Remove the stored config, when the appliance starts anew."""
    (run_dir / _NAME).unlink(missing_ok=True)
