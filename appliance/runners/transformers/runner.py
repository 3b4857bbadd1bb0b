"""A model for one task, with transformers; `tasks` says what each task is.

On a CPU this has run; on a GPU it has not yet.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import torch_offload
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import interface_of
from appliance.runners.model_loading import Compute, LoadRequest, TaskInput
from appliance.runners.threads import interruptible
from appliance.runners.transformers.tasks import TASKS

#: What the library raises about an input that it cannot use.
_REFUSALS: Final = (RuntimeError, ValueError, TypeError, LookupError, OSError)


_GPU: Final = "cuda:0"  # the first that its host sees


class TransformersRunner:
    """Runs a model of kind `transformers`; ``options.py`` has its options."""

    kind: ClassVar[str] = "transformers"

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._task: str = spec.options["task"]
        self._compute: Compute
        self._models: list[Any] = []  # of torch, that it computes with

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of a model for ``options["task"]``."""
        task = TASKS[options["task"]]
        return interface_of(task.inputs, task.output, required=task.required, aliases=task.aliases)

    async def setup(self) -> None:
        """Load the model."""
        folder = Path(self._spec.weights or "")
        if self._spec.weights is None or not folder.is_dir():
            raise LoadFailed(
                f"model {self._spec.model}: there are no weights at {self._spec.weights}; run: appliance pull"
            )
        if not (folder / "config.json").is_file():
            raise LoadFailed(
                f"{self._spec.model}: {folder} holds no config.json; kind transformers needs one"
            )
        try:
            self._compute = await asyncio.to_thread(self._load, folder)
        except LoadFailed as error:
            raise LoadFailed(f"{self._spec.model}: {error.detail}") from error
        except Exception as error:  # the weights may be anything, and anything may stumble over them
            raise LoadFailed(
                f"{self._spec.model} cannot be loaded for {self._task}: {_words(error)}"
            ) from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction."""
        began = time.perf_counter()
        try:
            answer = await interruptible(
                lambda cancelled: self._compute(TaskInput(job.input, Path(job.folder), cancelled))
            )
        except _REFUSALS as error:
            raise PredictionFailed(f"{self._task} cannot be done with this input: {_words(error)}") from error
        for name, value in answer.metrics.items():
            yield Metric(name, value)
        if "audio_duration" in answer.metrics:
            seconds = time.perf_counter() - began
            yield Metric("real_time_factor", round(seconds / answer.metrics["audio_duration"], 4))
        yield Output([answer.output], append=False)

    @property
    def levels(self) -> tuple[int, ...]:
        """Sleep levels that this model supports; empty where sleeping would free nothing."""
        return torch_offload.levels(self._spec) if self._models else ()

    async def sleep(self, level: int) -> int:
        """Move the weights to main memory and free the device."""
        return await asyncio.to_thread(torch_offload.fall_asleep, self._models)

    async def wake(self) -> None:
        """Move the weights back to the device."""
        await asyncio.to_thread(torch_offload.wake, self._models, _GPU)

    async def close(self) -> None:
        """Do nothing: the process ends and frees everything."""

    def _load(self, folder: Path) -> Compute:
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
        import huggingface_hub.constants
        import torch

        huggingface_hub.constants.HF_HUB_OFFLINE = True  # the zygote may have imported it long ago
        torch.set_num_threads(self._spec.threads)
        asked = self._spec.options["dtype"]
        on_cpu = self._spec.device == "cpu"
        loading = LoadRequest(
            folder=folder,
            device="cpu" if on_cpu else _GPU,
            dtype=("float32" if on_cpu else "auto") if asked == "auto" else asked,
            max_batch=self._spec.options["max_batch"],
            trust_remote_code=self._spec.options["trust_remote_code"],
            models=self._models,
        )
        return TASKS[self._task].load(loading)


def _words(error: Exception) -> str:
    """Return the message of an exception as one paragraph."""
    return " ".join(str(error).split())[:600] or type(error).__name__
