"""The base class of every kind's options in models.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from appliance.domain.section import Section
from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize

#: The option of kinds that load models with transformers.
TRUST_REMOTE_CODE: Final[Any] = Field(
    default=False,
    description="Run Python code from the weights folder. Enable it only for sources you trust.",
)
TORCH_RESIDUE: Final = GIB  # bytes of the device for the CUDA context of a sleeping torch model


class Options(Section):
    """Options of one model kind: the keys under ``options`` in models.yaml."""

    #: Whether models of this kind run on the CPU even on a machine with GPUs.
    ON_CPU: ClassVar[bool] = False
    #: Options that change only speed and memory; the model's version does not depend on them.
    UNVERSIONED: ClassVar[frozenset[str]] = frozenset()
    #: Advice in the error of a worker process that ran out of memory, as part of a sentence.
    OOM_HINT: ClassVar[str] = "ask for less at a time"

    @property
    def on_cpu(self) -> bool:
        """Whether the model runs on the CPU even on a machine with GPUs."""
        return self.ON_CPU

    @property
    def predictions_at_once(self) -> int:
        """Maximum number of predictions that one worker process runs at a time."""
        return 1

    @property
    def trainable(self) -> bool:
        """Whether new versions of the model can be trained."""
        return False

    def refusal(self, operation: str) -> str | None:
        """Return why this model does not support ``operation`` of its kind; None if it does.

        The text follows the name of the model in an error message.
        """
        return None

    def completed(self, folder: Path) -> Options:
        """Return these options with the values that the weights in ``folder`` determine.

        Raises:
            WeightsError: the weights are missing or cannot be used.
        """
        return self

    def with_extra_weights(self, paths: Mapping[str, Path], size: WeightSize) -> Options:
        """Return these options with the weights of ``ModelConfig.extra_weights``.

        Args:
            paths: folder or file of each of the extra weights, by its key in models.yaml.
            size: total size of all these weights.

        Raises:
            WeightsError: some of the extra weights are missing or cannot be used.
        """
        raise NotImplementedError

    def paths(self) -> list[Path]:
        """Return the files and folders, named in these options, that the worker process reads."""
        values = [value for _, value in self]
        values += [item for value in values if isinstance(value, dict) for item in value.values()]
        return [value for value in values if isinstance(value, Path)]

    def runner_options(self, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        """Return the options that the runner gets, as JSON values.

        Args:
            adapted: whether trained versions (adapters) run on the loaded model.
            weights: the weights file of the trained version that is loaded; None: the model's own weights.
        """
        return self.model_dump(mode="json")

    def training_footprint(self, weights: WeightSize) -> int:
        """Return the bytes to reserve on a device for training a model with these ``weights``."""
        raise NotImplementedError

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """Return the bytes to reserve on the device if the model sets neither `gpu` nor `memory`."""
        raise NotImplementedError

    def sleep_footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """Return the bytes that a sleeping model keeps on each device and in main memory.

        The bytes of main memory are those of sleep level 1; at level 2 they are 0. None: the model cannot
        sleep on this kind of device.
        """
        return None


def in_dtype(weights: WeightSize, dtype: str, device: Literal["cpu", "cuda"]) -> int:
    """Return the bytes of weights loaded as ``dtype``; ``auto``: float32 on a CPU, as stored on a GPU.

    Quantized weights stay as stored.
    """
    if weights.quantized:
        return weights.stored
    if dtype == "float32" or (dtype == "auto" and device == "cpu"):
        return weights.in_32_bits
    return weights.stored if dtype == "auto" else weights.in_16_bits
