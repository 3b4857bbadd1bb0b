"""Types that the scheduler takes and returns: devices, demands, states of a model, and decisions."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

import msgspec


class Residency(StrEnum):
    """States of a model, from not loaded (COLD) to ready for predictions (READY)."""

    COLD = "cold"  # not loaded; holds no memory
    LOADING = "loading"  # its memory is reserved and its worker process is starting
    READY = "ready"  # runs predictions
    DRAINING = "draining"  # finishes running and some queued predictions, then falls asleep or is unloaded
    FALLING_ASLEEP = "falling asleep"  # its weights are leaving the devices; the memory is still reserved
    ASLEEP = "asleep"  # its worker process runs, but holds only little device memory
    WAKING = "waking"  # its memory is reserved again and its weights are coming back
    UNLOADING = "unloading"  # its worker process is being stopped; the memory is still reserved


#: The states that may follow each state. A worker process may die in every state except COLD.
ALLOWED_TRANSITIONS: Final = {
    Residency.COLD: {Residency.LOADING, Residency.READY},  # READY: loaded by an earlier gateway process
    Residency.LOADING: {Residency.READY, Residency.COLD},
    Residency.READY: {Residency.DRAINING, Residency.FALLING_ASLEEP, Residency.UNLOADING, Residency.COLD},
    Residency.DRAINING: {Residency.FALLING_ASLEEP, Residency.UNLOADING, Residency.COLD},
    Residency.FALLING_ASLEEP: {Residency.ASLEEP, Residency.UNLOADING, Residency.COLD},
    Residency.ASLEEP: {Residency.WAKING, Residency.UNLOADING, Residency.COLD},
    Residency.WAKING: {Residency.READY, Residency.UNLOADING, Residency.COLD},
    Residency.UNLOADING: {Residency.COLD},
}


class SleepLevel(IntEnum):
    """Sleep levels, as in vLLM: whether main memory holds the weights of a sleeping model."""

    KEPT = 1  # in main memory
    DROPPED = 2  # only on disk, from which waking reads them again


class Origin(StrEnum):
    """Source of the memory size in a ``Demand``."""

    DECLARED = "declared"  # from models.yaml; never replaced
    ESTIMATED = "estimated"  # computed from the size of the weights and the options, before the first load
    MEASURED = "measured"  # the measured peak plus a margin


class Capacity(msgspec.Struct, frozen=True):
    """One device and the bytes of its memory that models may use."""

    device: str
    memory: int
    is_main_memory: bool = False  # only with GPUs: for sleeping models, and models on the CPU
    node: str = ""  # the machine of a cluster that has the device; empty on a single machine
    may_hold_parts: bool = True  # whether models on several machines may use its node


class SleepFootprint(msgspec.Struct, frozen=True):
    """Memory that a model holds while it sleeps."""

    residue: int  # bytes on each of its devices, at most
    main_memory: int  # bytes of main memory at SleepLevel.KEPT


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """The memory, devices and slots that one model needs."""

    model: str
    concurrency: int  # predictions that the model can run at a time
    memory: int | None = None  # bytes on each of its devices; exclusive with share
    share: float | None = None  # fraction of each of its devices, over 0 up to 1
    origin: Origin = Origin.DECLARED  # of memory or share
    devices: int = 1  # number of devices of one node that hold the model together
    machines: int = 1  # number of nodes that hold the model together, with ``devices`` devices each
    pin: bool = False  # loaded at start and never evicted
    preload: bool = False  # loaded at start
    idle_unload_after: float | None = None  # seconds without a prediction
    priority: int = 0  # each step doubles the weight of its waiting time and of its eviction cost
    #: None: the model cannot sleep. Always None if ``machines`` is over 1.
    sleep_footprint: SleepFootprint | None = None
    on_cpu: bool = False  # on a machine with GPUs, the model computes on the CPU and is held in main memory
    nodes: frozenset[str] | None = None  # that may hold the model; None: all nodes

    def may_use(self, capacity: Capacity) -> bool:
        """Return whether the model may be on the node of this device."""
        if self.machines > 1 and not capacity.may_hold_parts:
            return False
        return self.nodes is None or capacity.node in self.nodes

    def bytes_on(self, capacity: Capacity) -> int:
        return self.memory if self.memory is not None else int((self.share or 1.0) * capacity.memory)

    @property
    def on_each(self) -> str:
        """Words that follow an amount of memory in a sentence; empty for a single device."""
        if self.machines > 1:
            device = "one device" if self.devices == 1 else f"each of {self.devices} devices"
            return f" on {device} of each of {self.machines} machines"
        return f" on each of {self.devices} devices" if self.devices > 1 else ""

    @property
    def nodes_and_devices(self) -> str:
        """Words for the number of nodes and devices that the model needs."""
        if self.machines == 1:
            return f"{self.devices} devices of one node"
        devices = "one device" if self.devices == 1 else f"{self.devices} devices"
        return f"{self.machines} machines with {devices} each"


class Owner(NamedTuple):
    """The account that a prediction belongs to."""

    account: str = ""
    priority: int = 0  # when accounts wait for one model, each step doubles the account's share of the starts


class Start(msgspec.Struct, frozen=True):
    """Run this prediction on ``model`` now. The prediction holds a slot until ``Scheduler.finished``."""

    id: str
    model: str
    devices: tuple[str, ...]  # that hold the model
    cold_start: float = 0.0  # seconds that the prediction waited while its model was loaded or woken


class Load(msgspec.Struct, frozen=True):
    """Load this model; ``memory`` bytes are reserved on each of ``devices``."""

    model: str
    devices: tuple[str, ...]
    memory: int
    may_sleep: bool  # whether the scheduler may put the model to sleep later


class Unload(msgspec.Struct, frozen=True):
    """Stop the worker process of this model, which runs no prediction."""

    model: str
    reason: str
    devices: tuple[str, ...]  # that hold the model
    peak: int  # bytes that the model is expected to have used of each device; 0 if nothing was measured


class Sleep(msgspec.Struct, frozen=True):
    """Put this model, which runs no prediction, to sleep. It may keep ``residue`` bytes of each device."""

    model: str
    level: SleepLevel
    residue: int
    reason: str


class Wake(msgspec.Struct, frozen=True):
    """Wake this sleeping model, whose device memory is reserved already."""

    model: str


class Refuse(msgspec.Struct, frozen=True):
    """Fail this queued child prediction, which could never start. The scheduler has removed it already."""

    id: str
    reason: str


Decision = Start | Load | Unload | Sleep | Wake | Refuse
