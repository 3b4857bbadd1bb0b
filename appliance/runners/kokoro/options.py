"""Options of Kokoro models in models.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from appliance.domain.section import subsection
from appliance.domain.values import MIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.kokoro import files
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.options import Options

#: Main memory of a worker process besides the weights: an estimate, not measured with the real weights.
_PROCESS: Final = 1536 * MIB


class KokoroOptions(Options):
    """Options of a Kokoro model."""

    ON_CPU = True

    voices: dict[str, str] = Field(
        default={},
        description="Additional names for voices: name -> voice in the weights. For example, the voice "
        "names of the hosted model that this model replaces.",
    )

    def completed(self, folder: Path) -> FoundKokoroOptions:
        return FoundKokoroOptions.model_validate(self.model_dump() | {"found": files.voice_names(folder)})

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        return weights.stored + _PROCESS


class FoundKokoroOptions(KokoroOptions):
    """``KokoroOptions`` plus the voices in the weights; users cannot set them."""

    UNVERSIONED = frozenset({"found"})

    found: tuple[str, ...]


class KokoroModel(ModelConfig):
    """Text to speech with Kokoro-82M."""

    WEIGHT_FILES = ("model.onnx", "*/model.onnx", "kokoro*.onnx")
    COMPANION_FILES = ("voices/*.bin", "voices*.bin", *files.VOCABULARIES)

    kind: Literal["kokoro"] = Field(description="Text to speech: Kokoro.")
    source: WeightsSource = Field(
        description="Source of the weights: a folder with an .onnx file, voices (voices/*.bin, or one "
        "archive voices*.bin), and tokenizer.json or config.json."
    )
    options: KokoroOptions = subsection(KokoroOptions(), "Options of this kind.")
