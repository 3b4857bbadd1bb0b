"""The runner of kind `transformers`: runs a model for one of the tasks in ``TASKS``. Not tested on a GPU."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import failures
from appliance.runners.base import LoadSpec
from appliance.runners.batches import Batches
from appliance.runners.interfaces import interface_of
from appliance.runners.threads import interruptible, uninterruptible
from appliance.runners.torch_runner import GPU, TorchRunner
from appliance.runners.transformers.loading import (
    BatchCompute,
    Compute,
    LoadRequest,
    PreparedInput,
    TaskInput,
    TaskResult,
)
from appliance.runners.transformers.tasks import TASKS
from appliance.runners.transformers_library import prepare_libraries

#: Exceptions that the library raises for an input that it cannot use.
_INPUT_ERRORS: Final = (RuntimeError, ValueError, TypeError, LookupError, OSError)


class TransformersRunner(TorchRunner):
    """Runs models of kind `transformers`; the options are those of ``TransformersOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        super().__init__(spec)
        self._task: str = spec.options["task"]
        self._compute: Compute | BatchCompute
        self._batches: Batches[PreparedInput, TaskResult]
        self._preparing: asyncio.Semaphore

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        task = TASKS[options["task"]]
        inputs = {**task.inputs, **task.inputs_of_type.get(options.get("model_type", ""), {})}
        return interface_of(inputs, task.output, required=task.required, aliases=task.aliases)

    async def setup(self) -> None:
        folder = failures.existing_weights(self._spec)
        if not (folder / "config.json").is_file():
            raise LoadFailed(
                f"model {self._spec.model}: {folder} has no config.json, which kind transformers needs; "
                "correct the model's source"
            )
        try:
            self._compute = await asyncio.to_thread(self._load, folder)
        except LoadFailed as error:
            raise LoadFailed(f"model {self._spec.model}: {error.detail}") from error
        except Exception as error:  # weights can be wrong in any way, so any exception is possible
            raise LoadFailed(
                f"model {self._spec.model} cannot be loaded for {self._task}: {_message(error)}"
            ) from error
        if isinstance(self._compute, BatchCompute):
            most = self._spec.options["max_batch"]
            # Each image that is read needs memory, however large the batches are.
            self._preparing = asyncio.Semaphore(2)
            self._batches = Batches(self._compute.compute, most=most, key=lambda prepared: prepared.key)

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        began = time.perf_counter()
        try:
            result = await self._result(job)
        except _INPUT_ERRORS as error:
            raise PredictionFailed(f"{self._task} failed with this input: {_message(error)}") from error
        for name, value in result.metrics.items():
            yield Metric(name, value)
        if "audio_duration" in result.metrics:
            seconds = time.perf_counter() - began
            yield Metric("real_time_factor", round(seconds / result.metrics["audio_duration"], 4))
        yield Output([result.output], append=False)

    async def _result(self, job: Job) -> TaskResult:
        compute, folder = self._compute, Path(job.folder)
        if not isinstance(compute, BatchCompute):
            return await interruptible(lambda cancelled: compute(TaskInput(job.input, folder, cancelled)))
        request = TaskInput(job.input, folder, threading.Event())
        async with self._preparing if "image" in job.input else contextlib.nullcontext():
            prepared = await uninterruptible(compute.prepare, request)
        return await self._batches.result(prepared, on_cancel=request.cancelled.set)

    def _load(self, folder: Path) -> Compute | BatchCompute:
        prepare_libraries(self._spec.threads)
        dtype = self._spec.options["dtype"]
        on_cpu = self._spec.device == "cpu"
        loading = LoadRequest(
            folder=folder,
            device="cpu" if on_cpu else GPU,
            dtype="float32" if on_cpu and dtype == "auto" else dtype,
            max_batch=self._spec.options["max_batch"],
            trust_remote_code=self._spec.options["trust_remote_code"],
            models=self._models,
        )
        return TASKS[self._task].load(loading)


def _message(error: Exception) -> str:
    """Return the message of an exception as one paragraph."""
    return " ".join(str(error).split())[:600] or type(error).__name__
