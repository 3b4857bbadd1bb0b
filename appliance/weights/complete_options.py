"""Completes the options of a model with values from its weights or its Cog project."""

from __future__ import annotations

from pathlib import Path

from appliance.config import CogModel, ModelConfig
from appliance.weights import locations, project


def complete_options(home: Path, model: ModelConfig) -> ModelConfig:
    """Return ``model`` with options that its weights or Cog project determine; ``home`` is the data folder.

    Raises:
        WeightsError: the weights or the project are missing or invalid.
    """
    if isinstance(model, CogModel):
        return project.built(model, project.folder(home, model))
    if model.source is None:
        return model
    options = model.options.completed(locations.folder(home, model))
    return model.model_copy(update={"options": options})
