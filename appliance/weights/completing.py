"""Completes the options of models with values from their weights or projects."""

from __future__ import annotations

from pathlib import Path

from appliance.config import CogModel, DiffusersModel, ModelConfig, PiperModel
from appliance.weights import pipeline, project, voices


def completed(home: Path, model: ModelConfig) -> ModelConfig:
    """Return ``model`` with complete options; ``home`` is the data folder.

    Raises:
        WeightsError: its weights or its project are missing or invalid.
    """
    match model:
        case CogModel():
            return project.built(model, project.folder(home, model))
        case DiffusersModel():
            return pipeline.completed(model, home)
        case PiperModel():
            return voices.completed(model, home)
    return model
