"""Options of echo models in models.yaml."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from appliance.domain.values import MIB, Bytes, Seconds
from appliance.domain.weight_size import WeightSize
from appliance.runners.options import Options

#: What an engine host takes besides weights and KV cache: the process with its libraries, and working memory.
_ECHO_HOST: Final = 64 * MIB
#: What a sleeper keeps of each device at most: the CUDA context, libraries' workspaces, graphs. A sleep that
#: leaves more ends the host.
_ECHO_RESIDUE: Final = MIB


class EchoOptions(Options):
    """Options of an echo model, which says back what it is told."""

    ON_CPU = True
    RESOURCES = frozenset({"concurrency", "startup_delay", "weights", "residue", "sleep_delay"})
    OOM_HINT = "lower its option concurrency"

    concurrency: int = Field(default=64, ge=1, le=10_000, description="Predictions that run at a time.")
    startup_delay: Seconds = Field(
        default=0.0, description="How long loading takes: seconds, or text such as 2s."
    )
    stream: bool = Field(
        default=False, description="Whether the output is a stream of words instead of one text."
    )
    files: bool = Field(default=False, description="Whether the output is files instead of text.")
    weights: Bytes | None = Field(
        default=None, description="Memory to hold as if it was weights, which is given back asleep."
    )
    residue: Bytes | None = Field(default=None, description="What of that is kept asleep all the same.")
    sleep_delay: Seconds = Field(
        default=0.0,
        description="How long falling asleep and waking take: seconds, or text such as 2s.",
    )

    @property
    def predictions_at_once(self) -> int:
        """See ``Options``."""
        return self.concurrency

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``."""
        return weights.stored + (self.weights or 0) + _ECHO_HOST

    def asleep(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """See ``Options``; what it gives back it holds on any device."""
        return None if self.weights is None else (_ECHO_RESIDUE, self.weights)
