"""Models with what only their weights or projects can say filled into their options."""

from __future__ import annotations

from pathlib import Path

from appliance.config import CogModel, DiffusersModel, ModelConfig, PiperModel
from appliance.weights import pipeline, project, voices


def completed(home: Path, model: ModelConfig) -> ModelConfig:
    """``model``, as it can be served; ``home`` is the data folder.

    Raises:
        WeightsError: it cannot be, because its weights or its project are not here, or are not what they
            should be.
    """
    match model:
        case CogModel():
            return project.built(model, project.folder(home, model))
        case DiffusersModel():
            return pipeline.completed(model, home)
        case PiperModel():
            return voices.completed(model, home)
    return model
