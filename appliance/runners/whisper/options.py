"""Options of Whisper models in models.yaml."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from appliance.domain.values import MIB, Seconds
from appliance.domain.weight_size import WeightSize
from appliance.runners.options import Options

#: What an engine host takes besides weights: the process with its libraries, working memory.
_WHISPER_HOST: Final = 768 * MIB
_SECOND: Final = 128_000  # bytes of one second of sound, while it is read


class WhisperOptions(Options):
    """Options of a model that hears."""

    RESOURCES = frozenset({"max_duration"})
    OOM_HINT = "lower its option max_duration"

    compute_type: Literal[
        "auto",
        "int8",
        "int8_float32",
        "int8_float16",
        "int8_bfloat16",
        "int16",
        "float16",
        "bfloat16",
        "float32",
    ] = Field(
        default="auto",
        description="What is computed in. auto: int8 on a CPU, float16 on a GPU.",
    )
    beam_size: int = Field(
        default=5, ge=1, le=64, description="Transcripts that are followed at a time; 1 is fastest."
    )
    vad_filter: bool = Field(
        default=False, description="Leave out what is not speech before it is transcribed."
    )
    max_duration: Annotated[Seconds, Field(gt=0)] = Field(
        default=7200.0,
        description="Longest sound that is accepted; it decides about memory. Seconds, or text such as 2h.",
    )

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``. Weights are taken to be in 16 bits, which float32 doubles."""
        sound = int(self.max_duration * _SECOND)
        loaded = weights.in_32_bits if self.compute_type == "float32" else weights.stored
        return loaded + sound + _WHISPER_HOST
