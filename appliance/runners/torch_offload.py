"""Sleep of torch models: moves weights to main memory and frees the device. Not tested on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

from appliance.runners.base import LoadSpec


def levels(spec: LoadSpec) -> tuple[int, ...]:
    """Return the supported sleep levels: none on a CPU, whose memory is main memory."""
    return (1,) if spec.sleeps and spec.device != "cpu" else ()


def fall_asleep(models: Iterable[Any]) -> int:
    """Move the models to main memory; return the bytes that torch still holds on the device.

    The CUDA context is not counted.
    """
    import torch

    for model in models:
        model.to("cpu")
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_reserved())


def wake(models: Iterable[Any], device: str) -> None:
    """Move the models back to ``device``."""
    import torch

    for model in models:
        model.to(device)
    torch.cuda.synchronize()
