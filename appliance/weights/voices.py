"""The voices in the weights of a Piper model, which its inputs name."""

from __future__ import annotations

from pathlib import Path

from appliance.config import Config, FoundPiperOptions, ModelConfig, PiperModel
from appliance.weights import places


def found(folder: Path) -> tuple[str, ...]:
    """The names of the voices in a folder, or of the one file ``folder``; none where nothing is there yet."""
    if folder.is_file():
        return (folder.stem,)
    return tuple(sorted(file.stem for file in folder.rglob("*.onnx")))


def completed(config: Config, home: Path) -> Config:
    """``config`` with the voices that are there filled into the options of Piper models."""
    models: list[ModelConfig] = []
    for model in config.models:
        if isinstance(model, PiperModel):
            told = model.options.model_dump() | {"found": found(places.folder(home, model))}
            options = FoundPiperOptions.model_validate(told)
            models.append(model.model_copy(update={"options": options}))
        else:
            models.append(model)
    return config.model_copy(update={"models": tuple(models)})
