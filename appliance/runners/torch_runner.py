"""The base class of runners with torch models, which sleep in main memory. Sleep is not tested on a GPU."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, Final

from appliance.runners.base import LoadSpec

GPU: Final = "cuda:0"  # torch's name of the GPU of a worker process, which sees only its own devices


class TorchRunner:
    """A runner whose torch models can sleep at level 1: their weights move to main memory."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._models: list[Any] = []  # moved to main memory by ``sleep``; empty: the runner cannot sleep

    @property
    def levels(self) -> tuple[int, ...]:
        return (1,) if self._spec.sleeps and self._spec.device != "cpu" and self._models else ()

    async def sleep(self, level: int) -> int:
        """Free device memory; return the bytes that torch still reserves, without the CUDA context."""
        return await asyncio.to_thread(self._free_device)

    async def wake(self) -> None:
        await asyncio.to_thread(self._move_to_device)

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""

    def _free_device(self) -> int:
        import torch

        for model in self._models:
            model.to("cpu")
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.memory_reserved())

    def _move_to_device(self) -> None:
        import torch

        for model in self._models:
            model.to(GPU)
        torch.cuda.synchronize()
