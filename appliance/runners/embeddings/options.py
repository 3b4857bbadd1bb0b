"""Options of embedding models in models.yaml."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from appliance.domain.section import subsection
from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig, WeightsSource
from appliance.runners.options import TORCH_RESIDUE, TRUST_REMOTE_CODE, Options

_PROCESS: Final = GIB // 2
_EMBEDDED_AT_ONCE: Final = 64  # predictions; they share batches


class EmbeddingsOptions(Options):
    """Options of an embedding model."""

    UNVERSIONED = frozenset({"max_batch"})
    OOM_HINT = "lower its option max_batch"

    max_batch: int = Field(
        default=64,
        ge=1,
        le=4096,
        description="Maximum number of texts computed in one batch, of one prediction or of several.",
    )
    dimensions: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        exclude_if=lambda value: value is None,  # the version of a model without it stays the same
        min_length=1,
        description="Lengths to which a caller may shorten vectors, with the input `dimensions`. Only for "
        "models trained for it (Matryoshka embeddings).",
    )
    trust_remote_code: bool = TRUST_REMOTE_CODE

    @property
    def predictions_at_once(self) -> int:
        return _EMBEDDED_AT_ONCE

    def sleep_footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        kept = self.footprint(weights, device) - _PROCESS
        return (TORCH_RESIDUE, kept) if device == "cuda" else None

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        # Models compute in 32 bits on a CPU and in 16 on a GPU, and are assumed to be stored in 32.
        in_32_bits = weights.stored if weights.parameters is None else weights.in_32_bits
        return (in_32_bits if device == "cpu" else in_32_bits // 2) + _PROCESS


class EmbeddingsModel(ModelConfig):
    """An embedding model, run with transformers."""

    kind: Literal["embeddings"] = Field(description="An embedding model, run with transformers.")
    source: WeightsSource = Field(description="Source of the weights.")
    options: EmbeddingsOptions = subsection(EmbeddingsOptions(), "Options of this kind.")
