"""Options of echo models in models.yaml."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from appliance.domain.section import subsection
from appliance.domain.values import MIB, Bytes, Seconds
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig
from appliance.runners.options import Options

#: Bytes that a worker process needs besides weights: libraries and working memory.
_PROCESS: Final = 64 * MIB
#: Maximum bytes that a sleeping model may keep on its device; a worker process that keeps more is ended.
_RESIDUE: Final = MIB


class EchoOptions(Options):
    """Options of an echo model, which returns its input as its output."""

    ON_CPU = True
    UNVERSIONED = frozenset({"concurrency", "startup_delay", "weights", "residue", "sleep_delay"})
    OOM_HINT = "lower its option concurrency"

    concurrency: int = Field(
        default=64, ge=1, le=10_000, description="Maximum number of predictions that run at the same time."
    )
    startup_delay: Seconds = Field(
        default=0.0, description="Time that loading takes: seconds, or text such as 2s."
    )
    stream: bool = Field(
        default=False, description="Stream the output word by word instead of returning one text."
    )
    files: bool = Field(default=False, description="Return files instead of text.")
    weights: Bytes | None = Field(
        default=None, description="Memory to allocate in place of weights; sleeping frees it."
    )
    residue: Bytes | None = Field(
        default=None, description="Part of `weights` that stays allocated while the model sleeps."
    )
    sleep_delay: Seconds = Field(
        default=0.0, description="Time that sleeping and waking take: seconds, or text such as 2s."
    )

    @property
    def predictions_at_once(self) -> int:
        return self.concurrency

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        return weights.stored + (self.weights or 0) + _PROCESS

    def sleep_footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        # Unlike other kinds, an echo model can sleep on the CPU too.
        return None if self.weights is None else (_RESIDUE, self.weights)


class EchoModel(ModelConfig):
    """A model for tests that returns its input and fails on demand."""

    kind: Literal["echo"] = Field(description="Echo, for tests: no weights.")
    source: None = Field(default=None, description="An echo model has no weights.")
    options: EchoOptions = subsection(EchoOptions(), "Options of this kind.")
