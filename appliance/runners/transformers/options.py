"""Options of models for one task, run with transformers, in models.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal, get_args

from pydantic import Field

from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.operations import RERANK
from appliance.runners.options import TORCH_RESIDUE, TRUST_REMOTE_CODE, Options, in_dtype

#: Bytes that a worker process needs besides weights: libraries and working memory.
_PROCESS: Final = GIB
#: The `model_type` of CSM, which clones the voice of a recording.
CSM: Final = "csm"
#: Bytes that CSM's codec needs to decode 90 s of float32 audio, the longest output; 2.6 GiB on a CPU.
_CODEC: Final = 3 * GIB

Task = Literal[
    "automatic-speech-recognition",
    "text-to-speech",
    "text-to-audio",
    "reranking",
    "image-classification",
    "image-captioning",
    "object-detection",
    "ocr",
    "visual-question-answering",
    "image-text-embeddings",
    "zero-shot-image-classification",
    "zero-shot-object-detection",
    "image-segmentation",
    "background-removal",
    "depth-estimation",
    "super-resolution",
    "translation",
    "summarization",
    "text-classification",
    "zero-shot-classification",
    "token-classification",
    "fill-mask",
]


#: Tasks that compute one prediction at a time: padding would change transcripts, speech and music draw random
#: numbers, so a batch would change their output, and super-resolution computes one image in tiles.
_ALONE: Final[frozenset[Task]] = frozenset(
    {"automatic-speech-recognition", "text-to-speech", "text-to-audio", "super-resolution"}
)

#: Tasks that compute several predictions in one batch.
BATCHED: Final[frozenset[Task]] = frozenset(get_args(Task)) - _ALONE


class TransformersOptions(Options):
    """Options of a model for one task, run with transformers."""

    UNVERSIONED = frozenset({"max_batch"})
    OOM_HINT = "lower its option max_batch"

    task: Task = Field(description="Task of the model; it determines the inputs and the output.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format to compute in. auto: the format of the weights on a GPU, "
        "float32 on a CPU.",
    )
    max_batch: int = Field(
        default=16,
        ge=1,
        le=4096,
        description="Maximum number of texts or images computed in one batch, of one prediction or, for most "
        "tasks, of several that wait. 1: each prediction is computed alone.",
    )
    trust_remote_code: bool = TRUST_REMOTE_CODE

    def completed(self, folder: Path) -> TransformersOptions:
        if self.task != "text-to-speech":
            return self
        found = {"model_type": _model_type(folder)}
        return FoundTransformersOptions.model_validate(self.model_dump() | found)

    @property
    def predictions_at_once(self) -> int:
        return self.max_batch if self.task in BATCHED else 1

    def refusal(self, operation: str) -> str | None:
        if operation == RERANK and self.task != "reranking":
            return f"is for the task {self.task}; this route needs a model for the task reranking"
        return None

    def sleep_footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        return (TORCH_RESIDUE, in_dtype(weights, self.dtype, device)) if device == "cuda" else None

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        return in_dtype(weights, self.dtype, device) + _PROCESS


class FoundTransformersOptions(TransformersOptions):
    """``TransformersOptions`` plus the ``model_type`` of the weights' config.json; users cannot set it."""

    UNVERSIONED = TransformersOptions.UNVERSIONED | {"model_type"}
    OOM_HINT = "ask for shorter speech"

    model_type: str  # empty before the weights are downloaded

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        codec = _CODEC if self.model_type == CSM else 0
        return super().footprint(weights, device) + codec


def _model_type(folder: Path) -> str:
    """Return ``model_type`` of config.json; empty if the file is missing or damaged: loading shows why."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    return str(config.get("model_type", "")) if isinstance(config, dict) else ""


class TransformersModel(ModelConfig):
    """A model for one task, run with transformers."""

    kind: Literal["transformers"] = Field(description="A model for one task, run with transformers.")
    source: WeightsSource = Field(description="Source of the weights.")
    options: TransformersOptions = Field(description="Options of this kind.")
