"""Options of Cog projects in models.yaml."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from appliance.domain.section import subsection
from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ModelConfig, ProjectSource
from appliance.runners.options import Options

_PROCESS: Final = GIB


class CogOptions(Options):
    """Options of a Cog project."""

    UNVERSIONED = frozenset({"concurrency"})
    OOM_HINT = "lower its option concurrency"

    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Predictions that run at the same time. Default: the value that the project declares.",
    )
    environment: dict[str, str] = Field(
        default={}, description="Additional environment variables for the project's process."
    )

    @property
    def predictions_at_once(self) -> int:
        """Maximum number of predictions that one worker process runs at a time."""
        return self.concurrency or 1

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """Estimate the bytes to reserve on the device.

        The memory that a project allocates is unknown; set `memory` for it.
        """
        return weights.stored + _PROCESS


class BuiltCogOptions(CogOptions):
    """``CogOptions`` plus the results of the build; users cannot set them."""

    UNVERSIONED = frozenset({"concurrency", "build", "trains"})

    build: str  # absolute path of the build
    trains: bool  # whether the project defines train()

    @property
    def trainable(self) -> bool:
        """Whether new versions of the model can be trained."""
        return self.trains

    def training_footprint(self, weights: WeightSize) -> int:
        """Estimate the bytes to reserve on the device for a training: the same as for predictions."""
        return self.footprint(weights, "cpu")  # does not depend on the device

    def runner_options(self, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        """Options that the runner gets; trained weights are passed in COG_WEIGHTS."""
        told = super().runner_options(adapted=adapted, weights=weights)
        if weights is not None:
            told["environment"] = {**told["environment"], "COG_WEIGHTS": weights}
        return told


class CogModel(ModelConfig):
    """A Cog project."""

    kind: Literal["cog"] = Field(description="A Cog project, run by Cog's own runtime.")
    source: ProjectSource = Field(description="The project's folder, with cog.yaml in it.")
    options: CogOptions = subsection(CogOptions(), "Options of this kind.")
