"""How much memory of each device is in use now, by models or by other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import psutil

from appliance.machine import Device, main_memory
from appliance.machine.gpus import Gpus


def device_usage(
    devices: Sequence[Device],
    gpus: Gpus | None,
    available: Callable[[], int] = lambda: psutil.virtual_memory().available,
) -> dict[str, int]:
    """Return the used bytes by device; devices whose use cannot be known are left out.

    ``gpus`` is None if there are none. ``available`` returns the bytes of main memory that the kernel can
    give.
    """
    used: dict[str, int | None] = {}
    for device in devices:
        if device.kind == "cuda":
            used[device.name] = None if gpus is None else gpus.used(device.name)
        elif not device.logical and device.memory <= main_memory():
            # Models get what the kernel can still give, but never more than the device has.
            used[device.name] = max(0, device.memory - available())
    return {name: size for name, size in used.items() if size is not None}
