"""What the scheduler is told of devices and models, and what it decides."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Residency(StrEnum):
    """Where a model's weights are."""

    COLD = "cold"  # not loaded
    LOADING = "loading"  # reserved, an engine host is starting
    READY = "ready"  # takes predictions
    DRAINING = "draining"  # finishes what runs, takes nothing new, then unloads
    UNLOADING = "unloading"  # its host is being stopped; memory is still reserved


class Capacity(msgspec.Struct, frozen=True):
    """One device and the bytes it has for models."""

    device: str
    memory: int


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What one model asks of the machine."""

    model: str
    concurrency: int  # predictions at a time
    memory: int | None = None  # bytes on each of its devices; exclusive with share
    share: float | None = None  # of each of its devices, over 0 up to 1
    devices: int = 1  # how many devices hold it together
    pin: bool = False  # loaded at start and never evicted
    preload: bool = False  # loaded at start
    idle_unload_after: float | None = None  # seconds
    priority: int = 0  # each step doubles what its waiting, and its being evicted, count for

    def bytes_on(self, capacity: Capacity) -> int:
        """Bytes this model takes of that device."""
        return self.memory if self.memory is not None else int((self.share or 1.0) * capacity.memory)


class Start(msgspec.Struct, frozen=True):
    """Run this prediction now; a slot of its model is taken until ``finished``."""

    id: str
    model: str
    cold_start: float = 0.0  # seconds that it waited while its model was loaded


class Load(msgspec.Struct, frozen=True):
    """Load this model; ``memory`` bytes are reserved on each of ``devices``."""

    model: str
    devices: tuple[str, ...]
    memory: int


class Unload(msgspec.Struct, frozen=True):
    """Stop this model's host; nothing runs on it."""

    model: str
    reason: str


class Refuse(msgspec.Struct, frozen=True):
    """This waiting prediction, a part of one that runs, could never begin; it is forgotten."""

    id: str
    reason: str


Decision = Start | Load | Unload | Refuse
