"""Options of Whisper models in models.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from appliance.domain.errors import WeightsError
from appliance.domain.section import subsection
from appliance.domain.values import MIB, FilePath, Seconds
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.options import Options

_PROCESS: Final = 768 * MIB  # memory of a worker process besides the weights
_SPEAKERS: Final = 1024 * MIB  # memory to find the speakers, with torch
_SECOND: Final = 128_000  # bytes of memory to decode one second of audio


class WhisperOptions(Options):
    """Options of a speech-to-text model."""

    UNVERSIONED = frozenset({"max_duration", "num_workers"})
    OOM_HINT = "lower its options max_duration or num_workers"

    compute_type: Literal[
        "auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16",
        "float32",
    ] = Field(
        default="auto",
        description="Number format to compute in. auto: int8 on a CPU, float16 on a GPU.",
    )  # fmt: skip
    beam_size: int = Field(
        default=5,
        ge=1,
        le=64,
        description="Beam width: candidate transcripts kept while decoding; 1 is fastest.",
    )
    vad_filter: bool = Field(
        default=False, description="Skip parts without speech (voice activity detection)."
    )
    speaker_encoder: FilePath | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # the version of a model without it stays the same
        description="Weights of Resemblyzer's voice encoder: the file pretrained.pt, or its folder. They add "
        "the input diarize, which labels the speakers. Default: none.",
    )
    max_duration: Annotated[Seconds, Field(gt=0)] = Field(
        default=7200.0,
        description="Longest audio that is accepted: seconds, or text such as 2h. Longer audio needs more "
        "memory.",
    )

    num_workers: int = Field(
        default=1,
        ge=1,
        le=64,
        exclude_if=lambda value: value == 1,  # memory measured without it stays valid
        description="Predictions that are transcribed at the same time. They share the weights, and on "
        "a CPU also the threads of the model. Each needs memory for audio of max_duration.",
    )

    @property
    def predictions_at_once(self) -> int:
        return self.num_workers

    def completed(self, folder: Path) -> WhisperOptions:
        if self.speaker_encoder is not None and not self.speaker_encoder.exists():
            raise WeightsError(
                f"options.speaker_encoder: {self.speaker_encoder} does not exist: correct it, or remove the "
                "key"
            )
        return self

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        # Weights are assumed to be stored in 16 bits; float32 doubles them.
        loaded = weights.in_32_bits if self.compute_type == "float32" else weights.stored
        process = _PROCESS + (0 if self.speaker_encoder is None else _SPEAKERS)
        return loaded + int(self.max_duration * _SECOND) * self.num_workers + process


class WhisperModel(ModelConfig):
    """Speech to text, run with faster-whisper."""

    WEIGHT_FILES = ("model.bin",)

    kind: Literal["whisper"] = Field(description="Speech to text: Whisper, run with faster-whisper.")
    source: WeightsSource = Field(description="Source of the weights: a folder in CTranslate2's format.")
    options: WhisperOptions = subsection(WhisperOptions(), "Options of this kind.")
