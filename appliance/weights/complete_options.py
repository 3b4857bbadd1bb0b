"""Adds values from a model's weights or project to its options."""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance.config import (
    CogModel,
    DescribedDiffusersOptions,
    DiffusersModel,
    FoundPiperOptions,
    ModelConfig,
    PiperModel,
)
from appliance.runners.diffusers import pipeline
from appliance.runners.piper import voices
from appliance.weights import locations, project


def complete_options(home: Path, model: ModelConfig) -> ModelConfig:
    """Return ``model`` with the values that its weights or project provide; ``home`` is the data folder.

    Raises:
        WeightsError: its weights or its project are missing or invalid.
    """
    match model:
        case CogModel():
            return project.built(model, project.folder(home, model))
        case DiffusersModel():
            described = msgspec.to_builtins(pipeline.read(locations.folder(home, model)))
            options = DescribedDiffusersOptions.model_validate(
                model.options.model_dump() | {"pipeline": described}
            )
            return model.model_copy(update={"options": options})
        case PiperModel():
            found = voices.found(locations.folder(home, model))
            voiced = FoundPiperOptions.model_validate(model.options.model_dump() | {"found": found})
            return model.model_copy(update={"options": voiced})
    return model
