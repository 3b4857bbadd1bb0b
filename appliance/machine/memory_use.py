"""Memory of each device that is in use now, by models or other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from appliance import machine
from appliance.machine import Device
from appliance.machine.gpus import Gpus


def device_usage(
    devices: Sequence[Device],
    gpus: Gpus | None,
    available: Callable[[], int] | None = None,
) -> dict[str, int]:
    """Return the used bytes by device, without devices whose use is unknown.

    ``gpus`` is None on a machine without GPUs. ``available`` returns the bytes of main memory that programs
    can still get; by default those of the machine, or of the cgroup that limits this process.
    """
    used: dict[str, int | None] = {}
    for device in devices:
        if device.kind == "cuda":
            used[device.name] = None if gpus is None else gpus.used(device.name)
        elif not device.logical and device.memory <= machine.main_memory():
            # If the machine can still give more than the whole device, nothing of the device is in use.
            used[device.name] = max(0, device.memory - (available or machine.available_memory)())
    return {name: size for name, size in used.items() if size is not None}
