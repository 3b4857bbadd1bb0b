"""Used memory, utilisation, power and temperature of NVIDIA GPUs, from NVML.

This code was only tested with a simulated NVML, not on a GPU.

In a container, NVML may report process ids of the host. Then the GPU memory of a worker process is unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Self

_log = logging.getLogger(__name__)


class Gpus:
    """Reads measurements of GPUs from NVML."""

    def __init__(self, nvml: Any) -> None:
        """``nvml`` is the initialised module ``pynvml``."""
        self._nvml = nvml
        self._warned = False

    @classmethod
    def connect(cls) -> Self | None:
        """Initialise NVML; return None if there is no NVIDIA driver or NVML fails."""
        try:
            import pynvml  # type: ignore[import-not-found,unused-ignore]  # not installed on CPU machines
        except ModuleNotFoundError:
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            _log.warning("cannot initialise NVML: %s: the used memory of GPUs is unknown", error)
            return None
        return cls(pynvml)

    def used(self, device: str) -> int | None:
        """Return the used bytes of a device such as "cuda:0"; None if NVML cannot read them."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle(device))
        except self._nvml.NVMLError as error:
            self._warn(device, error)
            return None
        return int(memory.total) - int(memory.free)

    def used_by(self, device: str, processes: Collection[int]) -> int | None:
        """Return the bytes of a device that these processes use; None if NVML knows none of the processes."""
        try:
            found = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle(device))
        except self._nvml.NVMLError as error:
            self._warn(device, error)
            return None
        sizes = [each.usedGpuMemory for each in found if each.pid in processes]
        known = [int(size) for size in sizes if size is not None]
        return sum(known) if known else None

    def utilisation(self, device: str) -> float | None:
        """Return the share of the last second in which a device computed, 0 to 1; None if it is unknown."""
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle(device)).gpu) / 100
        except self._nvml.NVMLError as error:
            self._warn(device, error)
            return None

    def power(self, device: str) -> float | None:
        """Return the power that a device draws, in watts; None if it is unknown."""
        try:
            return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle(device))) / 1000
        except self._nvml.NVMLError as error:
            self._warn(device, error)
            return None

    def temperature(self, device: str) -> float | None:
        """Return the temperature of a device, in degrees Celsius; None if it is unknown."""
        try:
            sensor = self._nvml.NVML_TEMPERATURE_GPU
            return float(self._nvml.nvmlDeviceGetTemperature(self._handle(device), sensor))
        except self._nvml.NVMLError as error:
            self._warn(device, error)
            return None

    def _handle(self, device: str) -> Any:
        return self._nvml.nvmlDeviceGetHandleByIndex(int(device.removeprefix("cuda:")))

    def _warn(self, device: str, error: Exception) -> None:
        if not self._warned:
            _log.warning("NVML cannot read a measurement of %s: %s", device, error)
        self._warned = True
