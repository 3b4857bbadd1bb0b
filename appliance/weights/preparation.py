"""Prepares a model to be loaded: its weights and its environment."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from appliance.builds import environments
from appliance.config import ModelConfig
from appliance.weights import locations
from appliance.weights.download import pull


def is_prepared(home: Path, model: ModelConfig) -> bool:
    """Return whether the weights of the model are on disk, and its environment is built.

    Raises:
        WeightsError: the files that identify the weights cannot be read.
    """
    present = model.source is None or locations.present(home, model)
    return present and environments.is_built(home, model)


def prepare(home: Path, model: ModelConfig, progress: Progress | None = None) -> None:
    """Download the weights of the model and build its environment, unless this is done already.

    ``progress`` gets a task for each.

    Raises:
        WeightsError: the weights cannot be downloaded, or the environment cannot be built.
    """
    if model.source is not None:
        pull(home, model, progress)
    if environments.is_built(home, model):
        return
    task = None
    if progress is not None:
        task = progress.add_task(f"{model.name}: building its environment", total=None)
    environments.build(home, model)
    if progress is not None and task is not None:
        progress.update(task, description=f"{model.name}: its environment is built", total=1, completed=1)
