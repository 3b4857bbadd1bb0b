"""How much of each device is in use now, by models or by anybody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil

from appliance.machine import Device, host_memory
from appliance.machine.gpus import Gpus


def _available() -> int:
    return psutil.virtual_memory().available


class DeviceUsage:
    """Asked before a model is loaded, and after one was unloaded."""

    def __init__(
        self, devices: Sequence[Device], gpus: Gpus | None, free: Callable[[], int] = _available
    ) -> None:
        """``gpus`` is None if there are none; ``free`` returns the bytes of main memory still available."""
        self._devices = devices
        self._gpus = gpus
        self._free = free

    def __call__(self) -> dict[str, int]:
        """Bytes by device. Those that cannot be known are left out: of logical devices, say."""
        found = {}
        for device in self._devices:
            used = self._used(device)
            if used is not None:
                found[device.name] = used
        return found

    def _used(self, device: Device) -> int | None:
        if device.kind == "cuda":
            return None if self._gpus is None else self._gpus.used(device.name)
        if device.logical or device.memory > host_memory():
            return None
        # What is left for models is what the kernel would give, but never more than the device has.
        return max(0, device.memory - self._free())
