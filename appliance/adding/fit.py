"""Whether a model fits on the devices, and which models it may evict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from appliance import machine
from appliance.config import Config


class DeviceUse(msgspec.Struct, frozen=True):
    """A device with the models that are loaded on it. Sizes in bytes."""

    name: str
    kind: Literal["cpu", "cuda"]
    memory: int
    free: int
    evictable: dict[str, int] = {}  # model -> bytes; of the models that can be evicted


class Fit(msgspec.Struct, frozen=True):
    """Where a model can be loaded."""

    state: Literal["fits", "evicts", "does not fit", "not known"]  # not known: there are no devices yet
    device: str | None = None
    evicts: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.state == "evicts":
            return f"fits on {self.device} after evicting {', '.join(self.evicts)}"
        if self.state == "not known":
            return "not known whether it fits, because no node has joined"
        return f"fits on {self.device}" if self.state == "fits" else "does not fit on any device"


def uses_of_config(config: Config) -> list[DeviceUse]:
    """Return the devices of this machine as if only the pinned models with a declared size were loaded.

    Return no devices if only the nodes of a cluster run models.
    """
    devices = [each for each in machine.discover(config.hardware) if not each.is_main_memory]
    pinned = sum(model.memory or 0 for model in config.models if model.pin)
    return [
        DeviceUse(each.name, each.kind, each.memory, each.memory - (0 if number else pinned))
        for number, each in enumerate(devices)
    ]


def find_fit(needed: int, devices: Sequence[DeviceUse]) -> Fit:
    """Return the fit on the device that needs the fewest evictions; ``not known`` without devices.

    The scheduler decides later which models it evicts; the ones named here are the smallest that suffice.
    """
    if not devices:
        return Fit("not known")
    found = [fit for device in devices if (fit := _on(needed, device)) is not None]
    return min(found, key=lambda fit: len(fit.evicts), default=Fit("does not fit"))


def _on(needed: int, device: DeviceUse) -> Fit | None:
    evicted: list[str] = []
    free = device.free
    for model, size in _smallest_first(device.evictable.items(), needed - free):
        if free >= needed:
            break
        evicted.append(model)
        free += size
    if free < needed:
        return None
    return Fit("evicts" if evicted else "fits", device.name, tuple(evicted))


def _smallest_first(models: Iterable[tuple[str, int]], missing: int) -> list[tuple[str, int]]:
    """Sort models: first those whose memory alone suffices, the smallest first."""
    return sorted(models, key=lambda each: (each[1] < missing, each[1] if each[1] >= missing else -each[1]))
