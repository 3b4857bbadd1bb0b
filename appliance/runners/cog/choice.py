"""Chooses the runner of a Cog project: an image, a project with coglet, or one with an older server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.domain.interface import Interface
from appliance.runners.base import LoadSpec, Runner
from appliance.runners.cog.image_runner import ImageRunner
from appliance.runners.cog.python_server import PythonServerRunner, PythonServerTrainer
from appliance.runners.cog.runner import PYTHON_SERVER, CogRunner, CogTrainer, description_of


class PredictionRunner:
    """Creates the runner of predictions. It is a class, because the runner of a kind is named by a class."""

    def __new__(cls, spec: LoadSpec) -> Runner:  # type: ignore[misc]  # as above
        if _is_image(spec.options):
            return ImageRunner(spec)
        return PythonServerRunner(spec) if _has_python_server(spec) else CogRunner(spec)

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return (ImageRunner if _is_image(options) else CogRunner).interface(options)


class TrainingRunner:
    """Creates the runner of trainings."""

    def __new__(cls, spec: LoadSpec) -> Runner:  # type: ignore[misc]  # as above
        return PythonServerTrainer(spec) if _has_python_server(spec) else CogTrainer(spec)

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        return CogTrainer.interface(options)


def _has_python_server(spec: LoadSpec) -> bool:
    return description_of(spec.options).get("runtime") == PYTHON_SERVER


def _is_image(options: Mapping[str, Any]) -> bool:
    return "image" in options
