"""Models of torch that sleep: their weights wait in main memory, and the device gets back what they held.

It has not run on a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

from appliance.runners.base import LoadSpec


def levels(spec: LoadSpec) -> tuple[int, ...]:
    """Of sleep that such a model is able to: on a CPU none, because its device is main memory."""
    return (1,) if spec.sleeps and spec.device != "cpu" else ()


def fall_asleep(models: Iterable[Any]) -> int:
    """Move them to main memory, and give back what torch holds of the device for later.

    Returns the bytes of the device that torch still holds; the CUDA context is not among them.
    """
    import torch

    for model in models:
        model.to("cpu")
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_reserved())


def wake(models: Iterable[Any], device: str) -> None:
    """Move them to ``device`` again."""
    import torch

    for model in models:
        model.to(device)
    torch.cuda.synchronize()
