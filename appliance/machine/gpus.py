"""Used memory of NVIDIA GPUs, from NVML. Has not run on a GPU yet: the tests simulate NVML.

In a container NVML may name processes by their numbers outside of it; what a host takes is then not known.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Self

_log = logging.getLogger(__name__)


class Gpus:
    """An open connection to NVML, which lives as long as the process."""

    def __init__(self, nvml: Any) -> None:
        """``nvml`` is the module pynvml, or answers like it, and is initialised."""
        self._nvml = nvml
        self._said = False

    @classmethod
    def connect(cls) -> Self | None:
        """None where there is no NVIDIA driver, or none that answers."""
        try:
            import pynvml  # type: ignore[import-not-found,unused-ignore]  # not installed on CPU machines
        except ModuleNotFoundError:
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            _log.warning("NVML does not answer: %s", error)
            return None
        return cls(pynvml)

    def used(self, device: str) -> int | None:
        """Bytes of ``device``, such as "cuda:0", that are taken by anybody; None if it does not say."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle(device))
        except self._nvml.NVMLError as error:
            self._complain(device, error)
            return None
        return int(memory.total) - int(memory.free)

    def taken(self, device: str, processes: Collection[int]) -> int | None:
        """Bytes of ``device`` that these processes take; None if it does not know them."""
        try:
            found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle(device))
        except self._nvml.NVMLError as error:
            self._complain(device, error)
            return None
        sizes = [each.usedGpuMemory for each in found if each.pid in processes]
        known = [int(size) for size in sizes if size is not None]
        return sum(known) if known else None

    def _handle(self, device: str) -> Any:
        return self._nvml.nvmlDeviceGetHandleByIndex(int(device.removeprefix("cuda:")))

    def _complain(self, device: str, error: Exception) -> None:
        if not self._said:
            _log.warning("NVML cannot read the used memory of %s: %s", device, error)
        self._said = True
