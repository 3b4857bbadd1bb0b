"""Options of Cog projects in models.yaml."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.options import Options

_COG_HOST: Final = GIB


class CogOptions(Options):
    """Options of a Cog project."""

    RESOURCES = frozenset({"concurrency"})
    OOM_HINT = "lower its option concurrency"

    concurrency: int | None = Field(
        default=None, ge=1, le=1000, description="Predictions at a time. Default: what the project says."
    )
    environment: dict[str, str] = Field(
        default={}, description="Further environment variables of the project's process."
    )

    @property
    def predictions_at_once(self) -> int:
        """See ``Options``."""
        return self.concurrency or 1

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """See ``Options``. What a project holds is its own business: `memory` should say it."""
        return weights.stored + _COG_HOST


class BuiltCogOptions(CogOptions):
    """The same with what was found out when the project was built; never in the file."""

    RESOURCES = frozenset({"concurrency", "build", "trains"})

    build: str  # absolute path
    trains: bool  # whether it has a train()

    @property
    def trainable(self) -> bool:
        """See ``Options``."""
        return self.trains

    def training_footprint(self, weights: WeightSize) -> int:
        """See ``Options``; nobody knows."""
        return self.footprint(weights, "cpu")  # the same on every device

    def loaded(self, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        """See ``Options``. A project gets trained weights by a variable of its environment."""
        told = super().loaded(adapted=adapted, weights=weights)
        if weights is not None:
            told["environment"] = {**told["environment"], "COG_WEIGHTS": weights}
        return told
