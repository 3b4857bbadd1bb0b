"""The voices in the weights of a Piper model, which its inputs name."""

from __future__ import annotations

from pathlib import Path

from appliance.config import FoundPiperOptions, PiperModel
from appliance.weights import places


def found(folder: Path) -> tuple[str, ...]:
    """The names of the voices in a folder, or of the one file ``folder``; none where nothing is there yet."""
    if folder.is_file():
        return (folder.stem,)
    return tuple(sorted(file.stem for file in folder.rglob("*.onnx")))


def completed(model: PiperModel, home: Path) -> PiperModel:
    """Return ``model`` with its options completed by the voices in its folder."""
    told = model.options.model_dump() | {"found": found(places.folder(home, model))}
    return model.model_copy(update={"options": FoundPiperOptions.model_validate(told)})
