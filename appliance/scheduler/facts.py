"""What the scheduler is told of devices and models, and what it decides."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

import msgspec


class Residency(StrEnum):
    """Where a model's weights are."""

    COLD = "cold"  # not loaded
    LOADING = "loading"  # reserved, an engine host is starting
    READY = "ready"  # takes predictions
    DRAINING = "draining"  # finishes what runs, takes nothing new, then makes room
    FALLING_ASLEEP = "falling asleep"  # its weights leave the device, which is still reserved
    ASLEEP = "asleep"  # its host lives, and holds little of the device
    WAKING = "waking"  # the device is reserved again, its weights come back
    UNLOADING = "unloading"  # its host is being stopped; memory is still reserved


#: What each state may become. A host may die in any state that has one.
MAY_BECOME: Final = {
    Residency.COLD: {Residency.LOADING, Residency.READY},  # ready: an earlier gateway has left it so
    Residency.LOADING: {Residency.READY, Residency.COLD},
    Residency.READY: {Residency.DRAINING, Residency.FALLING_ASLEEP, Residency.UNLOADING, Residency.COLD},
    Residency.DRAINING: {Residency.FALLING_ASLEEP, Residency.UNLOADING, Residency.COLD},
    Residency.FALLING_ASLEEP: {Residency.ASLEEP, Residency.UNLOADING, Residency.COLD},
    Residency.ASLEEP: {Residency.WAKING, Residency.UNLOADING, Residency.COLD},
    Residency.WAKING: {Residency.READY, Residency.UNLOADING, Residency.COLD},
    Residency.UNLOADING: {Residency.COLD},
}


class Level(IntEnum):
    """Where the weights of a sleeping model are."""

    KEPT = 1  # in main memory
    DROPPED = 2  # nowhere: they are read again, from the page cache if it still has them


class Origin(StrEnum):
    """Where the number of bytes that a model asks for comes from."""

    DECLARED = "declared"  # models.yaml says it; never replaced
    ESTIMATED = "estimated"  # from the size of its weights and its options, before it was ever loaded
    MEASURED = "measured"  # the most that it took when it was loaded, and a margin


class Capacity(msgspec.Struct, frozen=True):
    """One device and the bytes it has for models."""

    device: str
    memory: int
    host: bool = False  # main memory beside the devices: for sleepers, and models that compute on the CPU


class SleepFootprint(msgspec.Struct, frozen=True):
    """What a model that can sleep holds while it does."""

    residue: int  # bytes on each of its devices, at most
    main: int  # bytes of main memory, where its weights are kept there


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What one model asks of the machine."""

    model: str
    concurrency: int  # predictions at a time
    memory: int | None = None  # bytes on each of its devices; exclusive with share
    share: float | None = None  # of each of its devices, over 0 up to 1
    origin: Origin = Origin.DECLARED  # of memory or share
    devices: int = 1  # how many devices hold it together
    pin: bool = False  # loaded at start and never evicted
    preload: bool = False  # loaded at start
    idle_unload_after: float | None = None  # seconds
    priority: int = 0  # each step doubles what its waiting, and its being evicted, count for
    asleep: SleepFootprint | None = None  # None: it cannot sleep
    on_host: bool = False  # it is held in main memory, beside the devices

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


class Sleep(msgspec.Struct, frozen=True):
    """Have this model's host give its device back, all but ``residue`` bytes; nothing runs on it."""

    model: str
    level: Level
    residue: int
    reason: str


class Wake(msgspec.Struct, frozen=True):
    """Have this model's host take its device again, which is reserved."""

    model: str


class Refuse(msgspec.Struct, frozen=True):
    """This waiting prediction, a part of one that runs, could never begin; it is forgotten."""

    id: str
    reason: str


Decision = Start | Load | Unload | Sleep | Wake | Refuse
