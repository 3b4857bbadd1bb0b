"""The options of each model kind: what its runner can be told."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from appliance.domain.section import Section
from appliance.domain.values import GIB
from appliance.domain.weight_size import WeightSize

TORCH_RESIDUE: Final = GIB


class Options(Section):
    """What the appliance itself needs to know of any kind's options."""

    #: Whether it computes on the CPU although there are GPUs.
    ON_CPU: ClassVar[bool] = False
    #: Options that decide about speed and memory only: changing one keeps the model's version.
    RESOURCES: ClassVar[frozenset[str]] = frozenset()
    #: What to do when a host of this kind ran out of memory, as part of a sentence.
    OOM_HINT: ClassVar[str] = "ask for less at a time"

    @property
    def predictions_at_once(self) -> int:
        """How many predictions one engine host may run at a time."""
        return 1

    @property
    def trainable(self) -> bool:
        """Whether new versions of the model can be trained."""
        return False

    def loaded(self, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        """What a runner is told.

        ``adapted`` says whether trained versions run on what is loaded, ``weights`` is the file of the one
        trained version that is loaded.
        """
        return self.model_dump(mode="json")

    def training_footprint(self, weights: WeightSize) -> int:
        """Bytes to reserve on a device for training; ``weights`` are those that it begins with."""
        raise NotImplementedError

    def footprint(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> int:
        """Bytes to reserve on a ``device`` of that kind, where neither `gpu` nor `memory` says it.

        ``weights`` is what is known of the model's own.
        """
        raise NotImplementedError

    def asleep(self, weights: WeightSize, device: Literal["cpu", "cuda"]) -> tuple[int, int] | None:
        """Bytes that it keeps of each device asleep, and bytes of main memory if its weights go there.

        None if it cannot sleep there.
        """
        return None


def in_dtype(weights: WeightSize, dtype: str, device: Literal["cpu", "cuda"]) -> int:
    """Bytes of the weights once they are loaded; ``auto`` is float32 on a CPU, and as stored on a GPU."""
    if dtype == "float32" or (dtype == "auto" and device == "cpu"):
        return weights.in_32_bits
    return weights.stored if dtype == "auto" else weights.in_16_bits
