"""The options of kind `transformers`: a model for one task."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.options import TORCH_RESIDUE, Options, in_dtype

#: What an engine host takes besides weights: the process with its libraries, and working memory.
_HOST: Final = GIB

#: What a model can be for.
Task = Literal[
    "automatic-speech-recognition",
    "text-to-speech",
    "reranking",
    "image-classification",
    "image-captioning",
    "object-detection",
    "translation",
    "summarization",
    "text-classification",
    "zero-shot-classification",
    "token-classification",
    "fill-mask",
]


class TransformersOptions(Options):
    """Options of a model for one task, run with transformers."""

    RESOURCES = frozenset({"max_batch"})
    OOM_HINT = "lower its option max_batch"

    task: Task = Field(description="What it is for, which decides about its inputs and output.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="What is computed in. auto: as the weights are, on a GPU; float32 on a CPU.",
    )
    max_batch: int = Field(
        default=16, ge=1, le=4096, description="Texts of one prediction that are computed together."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the weights. Only for sources you trust."
    )

    def asleep(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """See ``Options``."""
        return (TORCH_RESIDUE, in_dtype(weights, self.dtype, device)) if device == "cuda" else None

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``."""
        return in_dtype(weights, self.dtype, device) + _HOST
