"""Loads tiny models of kind `transformers`, and runs predictions with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import torch

from appliance.domain.interface import Interface
from appliance.runners.transformers.options import TransformersOptions
from appliance.runners.transformers.runner import TransformersRunner
from tests.support import tiny_models, tiny_vision_models
from tests.support.runner_calls import Ran, job, load_spec, run

MAKERS = tiny_models.MAKERS | tiny_vision_models.MAKERS


class Models:
    """Tiny models, made and loaded when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: dict[tuple[str, Callable[[Path], None]], TransformersRunner] = {}

    def made(self, maker: Callable[[Path], None]) -> Path:
        folder = self.folder / maker.__name__
        if not folder.exists():
            torch.manual_seed(0)  # the same random weights in every run
            maker(folder)
        return folder

    async def loaded(self, task: str, maker: Callable[[Path], None] | None = None) -> TransformersRunner:
        maker = maker or MAKERS[task]
        if (task, maker) not in self._loaded:
            self._loaded[task, maker] = runner_of(self.made(maker), task)
            await self._loaded[task, maker].setup()
        return self._loaded[task, maker]

    def interface(self, task: str, maker: Callable[[Path], None] | None = None) -> Interface:
        """The interface of a model whose weights are known."""
        known = TransformersOptions.model_validate({"task": task}).completed(self.made(maker or MAKERS[task]))
        return TransformersRunner.interface(known.model_dump(mode="json"))

    async def __call__(self, task: str, maker: Callable[[Path], None] | None = None, /, **given: Any) -> Ran:
        """One prediction, whose output is held to what the interface says."""
        runner = await self.loaded(task, maker)
        interface = self.interface(task, maker)
        ran = await run(runner, job(interface, self.folder / "output", **given))
        jsonschema.validate(json.loads(json.dumps(ran.output, default=str)), interface.output)
        return ran


def options(task: str, **more: Any) -> dict[str, Any]:
    return TransformersOptions.model_validate({"task": task, **more}).model_dump(mode="json")


def runner_of(folder: Path | None, task: str, **more: Any) -> TransformersRunner:
    return TransformersRunner(load_spec("transformers", folder, **options(task, **more)))
