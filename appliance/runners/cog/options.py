"""Options of Cog projects in models.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from pydantic import Field

from appliance.domain.section import subsection
from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize
from appliance.runners.model_config import ImageSource, ModelConfig, ProjectSource
from appliance.runners.options import Options

_PROCESS: Final = GIB


class CogOptions(Options):
    """Options of a Cog project."""

    UNVERSIONED = frozenset({"concurrency", "network"})
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
    network: bool = Field(
        default=False,
        description="Allow an image to connect to other machines. Projects that are not images always can.",
    )

    @property
    def predictions_at_once(self) -> int:
        return self.concurrency or 1

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        # The memory that a project allocates is unknown; the user sets `memory` for it.
        return weights.stored + _PROCESS


class BuiltCogOptions(CogOptions):
    """``CogOptions`` plus facts about the build, which users cannot set."""

    UNVERSIONED = frozenset({"concurrency", "network", "build", "trains"})

    build: str  # absolute path of the folder of the build
    trains: bool  # whether the project defines train()

    @property
    def trainable(self) -> bool:
        return self.trains

    def training_footprint(self, weights: WeightSize) -> int:
        return self.footprint(weights, "cpu")  # the same as for predictions, on any device

    def runner_options(self, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        options = super().runner_options(adapted=adapted, weights=weights)
        if weights is not None:  # Cog reads the path of trained weights from COG_WEIGHTS
            options["environment"] = {**options["environment"], "COG_WEIGHTS": weights}
        return options


class ImageCogOptions(CogOptions):
    """``CogOptions`` plus facts about the unpacked image, which users cannot set."""

    UNVERSIONED = frozenset({"concurrency", "network", "image"})

    image: str  # absolute path of the folder of the image


class CogModel(ModelConfig):
    """A Cog project."""

    kind: Literal["cog"] = Field(description="A Cog project, run by Cog's own runtime.")
    source: ProjectSource = Field(
        description="Source of the project: a folder that contains cog.yaml, or an image."
    )
    options: CogOptions = subsection(CogOptions(), "Options of this kind.")
    build: Literal["auto", "environment", "image"] = Field(
        default="auto",
        description="How the project is built: as a Python environment, or with buildah as an image. "
        "auto: as an image if an environment cannot be built on this machine, and buildah is installed.",
    )
    base: str = Field(
        default="docker.io/library/python:{python}-slim",
        pattern=r"^\S+$",
        description="Image with which a build as an image begins; {python} is the version in cog.yaml. "
        "It needs Debian's packages and Python with pip.",
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        yield from super().conflicts()
        if self.environment is not None:
            yield "environment", "a Cog project names its packages in cog.yaml: remove this key"
        is_image = isinstance(self.source, ImageSource)
        if self.options.network and not is_image and self.build != "image":
            yield (
                "options.network",
                "only images have this option: remove it, or set build: image",
            )
        if is_image and self.build != "auto":
            yield "build", "the source is an image, which is not built: remove this key"
