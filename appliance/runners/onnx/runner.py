"""The runner of kind `onnx`: runs an ONNX file with onnxruntime. Not tested on a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.domain.errors import LoadFailed, PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import failures
from appliance.runners.base import LoadSpec
from appliance.runners.batches import Batches
from appliance.runners.interfaces import interface_of
from appliance.runners.onnx import inputs, outputs
from appliance.runners.onnx.inputs import OnnxInputs
from appliance.runners.onnx.options import ImageInput, OnnxOptions
from appliance.runners.onnx.outputs import Computed, Outputs
from appliance.runners.onnx_session import open_session

if TYPE_CHECKING:
    import numpy.typing as npt

    Tensors = dict[str, npt.NDArray[Any]]


class OnnxRunner:
    """Runs models of kind `onnx`; the options are those of ``OnnxOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._options: OnnxOptions
        self._session: Any
        self._inputs: OnnxInputs
        self._outputs: Outputs
        self._batches: Batches[Tensors, Tensors]

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        checked = OnnxOptions.model_validate(options)
        schemas, required = inputs.schemas(checked.inputs)
        return interface_of(
            {**schemas, **outputs.more_inputs(checked.outputs)},
            outputs.schema(checked.outputs),
            required=required,
        )

    async def setup(self) -> None:
        weights = failures.existing_weights(self._spec)
        self._options = OnnxOptions.model_validate(self._spec.options)
        try:
            file = onnx_file(weights, self._options.file)
            self._session = await asyncio.to_thread(
                open_session, file, self._spec, on_cpu=self._options.on_cpu
            )
            self._inputs = OnnxInputs(self._options.inputs, self._session, file.parent)
            image = any(isinstance(each, ImageInput) for each in self._options.inputs.values())
            self._outputs = Outputs(self._options.outputs, self._session, file.parent, image=image)
        except LoadFailed as error:
            if error.detail.startswith("model "):
                raise
            raise LoadFailed(f"model {self._spec.model}: {error.detail}") from error
        most = self._options.max_batch if self._batchable() else 1
        self._batches = Batches(self._compute, most=most, key=_shapes)

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        prepared = await asyncio.to_thread(self._inputs.read, job.input)
        try:
            tensors = await self._batches.result(prepared.tensors)
        except Exception as error:  # onnxruntime's errors share no base class
            raise PredictionFailed(
                f"model {self._spec.model} failed with this input: {failures.summary(str(error), ())}"
            ) from error
        folder = Path(job.folder)
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        made = await asyncio.to_thread(self._outputs.make, Computed(prepared, tensors, job.input, folder))
        if prepared.seconds is not None:
            yield Metric("audio_duration", prepared.seconds)
        yield Output([made], append=False)

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""

    def _batchable(self) -> bool:
        """Return whether predictions can be computed together.

        The first axis of all inputs and outputs must have the same name. An unnamed axis may have another
        meaning, such as the number of objects, by which the results could not be divided.
        """
        tensors = [*self._session.get_inputs(), *self._outputs.tensors]
        first = {tensor.shape[0] if tensor.shape else 1 for tensor in tensors}
        return len(first) == 1 and all(isinstance(axis, str) and axis != "?" for axis in first)

    def _compute(self, batch: list[Tensors]) -> list[Tensors]:
        import numpy as np

        names = self._outputs.names
        feeds = batch[0]
        if len(batch) > 1:
            feeds = {name: np.concatenate([tensors[name] for tensors in batch]) for name in feeds}
        results = dict(zip(names, self._session.run(names, feeds), strict=True))
        if len(batch) == 1:
            return [results]
        starts = np.cumsum([0, *(len(next(iter(tensors.values()))) for tensors in batch)])
        return [
            {name: result[starts[at] : starts[at + 1]] for name, result in results.items()}
            for at in range(len(batch))
        ]


def _shapes(tensors: Tensors) -> Hashable:
    """Return what the tensors of two predictions must have in common to be computed together.

    A prediction whose tensors differ in their first axis is computed alone: in a batch, its rows would be
    combined with rows of another prediction.
    """
    if len({tensor.shape[:1] for tensor in tensors.values()}) > 1:
        return object()
    return tuple((name, tensor.shape[1:]) for name, tensor in tensors.items())


def onnx_file(weights: Path, name: str | None) -> Path:
    """Return the ONNX file ``name`` in a folder, or its only one; ``weights`` may be the file itself.

    Raises:
        LoadFailed: there is no such file, or there are several; the message does not name the model.
    """
    if weights.is_file():
        return weights
    found = sorted(weights.rglob("*.onnx"))
    if name is not None:
        if not (weights / name).is_file():
            raise LoadFailed(f"options.file: {weights} has no file {name}; {_choice(found, weights)}")
        return weights / name
    if len(found) != 1:
        number = "several ONNX files: set options.file to one" if found else "no ONNX file"
        raise LoadFailed(f"{weights} has {number}; {_choice(found, weights)}")
    return found[0]


def _choice(found: list[Path], weights: Path) -> str:
    if not found:
        return "correct the model's source"
    return f"the files are {', '.join(str(file.relative_to(weights)) for file in found[:12])}"
