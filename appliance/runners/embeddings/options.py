"""Options of embedding models in models.yaml."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.options import TORCH_RESIDUE, Options

_EMBEDDINGS_HOST: Final = GIB // 2
_EMBEDDED_AT_ONCE: Final = 64  # predictions; they wait for each other's batches


class EmbeddingsOptions(Options):
    """Options of an embedding model."""

    RESOURCES = frozenset({"max_batch"})
    OOM_HINT = "lower its option max_batch"

    max_batch: int = Field(
        default=64, ge=1, le=4096, description="Texts computed together, of one prediction or of many."
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the weights. Only for sources you trust."
    )

    @property
    def predictions_at_once(self) -> int:
        """See ``Options``."""
        return _EMBEDDED_AT_ONCE

    def asleep(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """See ``Options``."""
        kept = self.footprint(weights, device) - _EMBEDDINGS_HOST
        return (TORCH_RESIDUE, kept) if device == "cuda" else None

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``. Computed in 32 bits on a CPU, in 16 on a GPU; taken to be stored in 32."""
        in_32_bits = weights.stored if weights.numbers is None else weights.in_32_bits
        return (in_32_bits if device == "cpu" else in_32_bits // 2) + _EMBEDDINGS_HOST
