"""Completes the options of a model with values from its weights or its Cog project."""

from __future__ import annotations

from pathlib import Path

from appliance.builds import project, project_image
from appliance.config import CogModel, ImageSource, ModelConfig
from appliance.weights import cog_image, locations
from appliance.weights.size import total_size, weight_size_of


def complete_options(home: Path, model: ModelConfig) -> ModelConfig:
    """Return ``model`` with options that its weights or Cog project determine; ``home`` is the data folder.

    Raises:
        WeightsError: the weights or the project are missing or invalid.
    """
    if isinstance(model, CogModel) and isinstance(model.source, ImageSource):
        return cog_image.completed(model, cog_image.folder(home, model.source))
    if isinstance(model, CogModel) and project_image.source(home, model) is not None:
        return cog_image.completed(model, locations.folder(home, model))
    if isinstance(model, CogModel):
        return project.built(model, project.folder(home, model))
    if model.source is None:
        return model
    options = model.options.completed(locations.folder(home, model))
    if extra := model.extra_weights:
        paths = {key: locations.folder(home, weights) for key, weights in extra.items()}
        options = options.with_extra_weights(paths, total_size(map(weight_size_of, paths.values())))
    return model.model_copy(update={"options": options})
