"""Options of models that find who speaks when, in models.yaml."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from appliance.domain.section import subsection
from appliance.domain.values import GIB, Seconds
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.options import Options

#: Main memory of a worker process besides the weights, with the samples of an hour of audio.
_PROCESS: Final = 2 * GIB
_INCLUDED: Final = 3600.0  # seconds of audio whose samples are in _PROCESS
_SECOND: Final = 2 * 16_000 * 4  # bytes of the samples of a second, which are copied once


class DiarizationOptions(Options):
    """Options of a model that finds who speaks when."""

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
        return weights.stored + _PROCESS + int(max(0.0, self.max_duration - _INCLUDED) * _SECOND)


class DiarizationModel(ModelConfig):
    """A model that finds who speaks when: Resemblyzer's voice encoder."""

    WEIGHT_FILES = ("pretrained.pt",)

    kind: Literal["diarization"] = Field(description="Who speaks when: Resemblyzer's voice encoder.")
    source: WeightsSource = Field(description="Source of the weights: the file pretrained.pt of Resemblyzer.")
    options: DiarizationOptions = subsection(DiarizationOptions(), "Options of this kind.")
