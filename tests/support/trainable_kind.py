"""A trainable model kind: training stores a phrase, and the trained version puts it before each output."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from appliance.domain.errors import PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.runners import KINDS
from appliance.runners.base import Kind, LoadSpec
from appliance.runners.echo.options import EchoOptions
from appliance.runners.echo.runner import EchoRunner
from tests.support.engine_bench import entry


class Tutor:
    """The trainer; ``train_data`` is the phrase."""

    kind: ClassVar[str] = "tutor"

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        properties = {
            "train_data": {"type": "string", "format": "uri", "title": "Train Data", "x-order": 0},
            "delay": {"type": "number", "default": 0, "title": "Delay", "x-order": 1},
        }
        return Interface(
            input={"type": "object", "title": "Input", "properties": properties, "required": ["train_data"]},
            output={"type": "object"},
        )

    async def setup(self) -> None:
        pass

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        phrase = Path(job.input["train_data"]).read_text()
        if not phrase:
            raise PredictionFailed("train_data: the file has no examples")
        yield Log("step 1/1 loss 0.1\n")
        await asyncio.sleep(job.input["delay"])
        folder = Path(job.folder) / "adapter"
        folder.mkdir(parents=True)
        (folder / "phrase.txt").write_text(phrase)
        yield Output([folder], append=False)

    async def close(self) -> None:
        pass


class Pupil(EchoRunner):
    """Puts the phrase of its adapter before its output."""

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        adapter = job.adapter or job.input.get("lora_weights")
        phrase = "" if adapter is None else _phrase(Path(adapter)) + " "
        async for event in super().run(job):
            match event:
                case Output([str(text)], append=False):
                    yield Output([phrase + text], append=False)
                case _:
                    yield event


def _phrase(path: Path) -> str:
    return (path / "phrase.txt" if path.is_dir() else path).read_text()


def pupil(patch: pytest.MonkeyPatch) -> ServedVersion:
    """Return a model of this kind; until ``patch`` ends, the kind echo is this kind."""
    patch.setitem(KINDS, "tutor", Kind(name="tutor", runner="tests.support.trainable_kind:Tutor"))
    pupil = Kind(name="echo", runner="tests.support.trainable_kind:Pupil", trainer="tutor")
    patch.setitem(KINDS, "echo", pupil)
    patch.setattr(EchoOptions, "trainable", True)
    return entry("test/pupil")
