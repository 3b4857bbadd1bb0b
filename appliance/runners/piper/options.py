"""Options of Piper voices in models.yaml."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from appliance.domain.values import MIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.options import Options

_PIPER_HOST: Final = 512 * MIB


class PiperOptions(Options):
    """Options of voices."""

    ON_CPU = True

    voices: dict[str, str] = Field(
        default={},
        description="Further names that callers may use for voices of the weights, such as those of the "
        "hosted models it stands in for.",
    )

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``."""
        return weights.stored + _PIPER_HOST


class FoundPiperOptions(PiperOptions):
    """The same with the voices that the weights hold; never in the file."""

    RESOURCES = frozenset({"found"})

    found: tuple[str, ...]  # the first is the default
