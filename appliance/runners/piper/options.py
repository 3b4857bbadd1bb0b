"""Options of Piper voices in models.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from appliance.domain.section import subsection
from appliance.domain.values import MIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.options import Options
from appliance.runners.piper import voices

_PROCESS: Final = 512 * MIB  # main memory of a worker process besides the weights


class PiperOptions(Options):
    """Options of a model with Piper voices."""

    ON_CPU = True

    voices: dict[str, str] = Field(
        default={},
        description="Additional names for voices: name -> voice in the weights. Use it for the voice names "
        "of a hosted model that this model replaces.",
    )

    def completed(self, folder: Path) -> FoundPiperOptions:
        return FoundPiperOptions.model_validate(self.model_dump() | {"found": voices.found(folder)})

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        return weights.stored + _PROCESS


class FoundPiperOptions(PiperOptions):
    """``PiperOptions`` plus the voices in the weights; users cannot set them."""

    UNVERSIONED = frozenset({"found"})

    found: tuple[str, ...]  # the first is the default


class PiperModel(ModelConfig):
    """Text to speech, run with Piper."""

    WEIGHT_FILES = ("*.onnx",)

    kind: Literal["piper"] = Field(description="Text to speech: Piper voices.")
    source: WeightsSource = Field(
        description="Source of the voices: a folder with .onnx and .onnx.json files."
    )
    options: PiperOptions = subsection(PiperOptions(), "Options of this kind.")
