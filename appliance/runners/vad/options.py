"""Options of voice activity detectors in models.yaml."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from appliance.domain.section import subsection
from appliance.domain.values import MIB, Seconds
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.options import Options

#: Main memory of a worker process besides the weights, with the samples of an hour of audio.
_PROCESS: Final = 1536 * MIB


class VadOptions(Options):
    """Options of a voice activity detector."""

    ON_CPU = True
    UNVERSIONED = frozenset({"max_duration"})
    OOM_HINT = "lower its option max_duration"

    max_duration: Seconds = Field(
        default=3600.0,
        gt=0,
        description="Longest audio that is accepted: seconds, or text such as 2h. Longer audio needs more "
        "memory.",
    )

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        return weights.stored + _PROCESS


class VadModel(ModelConfig):
    """A voice activity detector: Silero VAD."""

    WEIGHT_FILES = ("*.onnx",)

    kind: Literal["vad"] = Field(description="Voice activity detection: Silero VAD.")
    source: WeightsSource = Field(description="Source of the weights: the file silero_vad.onnx.")
    options: VadOptions = subsection(VadOptions(), "Options of this kind.")
