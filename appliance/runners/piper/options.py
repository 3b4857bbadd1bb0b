"""Options of Piper voices in models.yaml."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from appliance.domain.values import MIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.options import Options

_PROCESS: Final = 512 * MIB


class PiperOptions(Options):
    """Options of a model with Piper voices."""

    ON_CPU = True

    voices: dict[str, str] = Field(
        default={},
        description="Additional names for voices: name -> voice in the weights. Use it for the "
        "voice names of a "
        "hosted model that this model replaces.",
    )

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """Estimate the bytes to reserve on the device."""
        return weights.stored + _PROCESS


class FoundPiperOptions(PiperOptions):
    """``PiperOptions`` plus the voices in the weights; users cannot set them."""

    UNVERSIONED = frozenset({"found"})

    found: tuple[str, ...]  # the first is the default
