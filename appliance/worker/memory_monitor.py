"""Measure the memory that one worker process takes, and whether that exceeds its limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.machine import process_memory
from appliance.machine.gpus import Gpus

#: A worker process may take a tenth more main memory than its limit, or this many bytes if that is more,
#: because some libraries are loaded late and some objects are freed only at the next garbage collection.
TOLERANCE: Final = 0.1
LEAST_TOLERANCE: Final = 128 * 1024**2
#: Peaks that differ by less are the same.
_STEP: Final = 1024**2


class MemoryUsage(msgspec.Struct, frozen=True):
    """Peak memory of a worker process and its children since its start."""

    main: int  # bytes of main memory, without what a forked worker process has from the zygote
    device: int | None = None  # bytes of one GPU, the fullest of its own; None where that is not known


class MemoryMonitor:
    """The memory monitor of one worker process. ``look`` may be called in any thread, one at a time."""

    def __init__(self, group: int, devices: Sequence[str], limit: int | None) -> None:
        """``group`` is the process group, ``devices`` are its GPUs, ``limit`` is bytes of main memory.

        A process with GPUs has no limit here: it reserves GPU memory, and the GPU's driver refuses more.
        """
        self._group = group
        self._devices = devices
        self._gpus = Gpus.connect() if devices else None
        self.limit = limit
        self.over: int | None = None  # what it took when it was over its limit
        self._inherited = process_memory.inherited(group)
        self._ready = False
        self._anonymous = 0  # at most, since files were looked at
        self._main = 0
        self._device: int | None = None

    @property
    def taken(self) -> MemoryUsage:
        """The most so far."""
        return MemoryUsage(self._main, self._device)

    def ready(self) -> None:
        """The model is loaded: what it maps of its weights from now on, it uses."""
        self._ready = True
        self._anonymous = 0

    def look(self) -> bool:
        """Measure; returns whether there is a new peak. ``over`` is set where it takes too much."""
        before = self.taken
        anonymous = process_memory.anonymous(self._group, self._inherited)
        if anonymous > self._anonymous + _STEP:
            self._anonymous = anonymous
            files = process_memory.file_backed(self._group) if self._ready else 0
            self._main = max(self._main, anonymous + files)
        if self.limit is not None and anonymous > self.limit + max(self.limit * TOLERANCE, LEAST_TOLERANCE):
            self.over = anonymous
        self._look_at_gpus()
        return self._main > before.main + _STEP or (self._device or 0) > (before.device or 0) + _STEP

    def on_device(self) -> int | None:
        """Bytes of the fullest of its GPUs that it takes now; None where that is not known."""
        if self._gpus is None:
            return None
        pids = process_memory.members(self._group)
        sizes = [self._gpus.used_by(device, pids) for device in self._devices]
        return max((size for size in sizes if size is not None), default=None)

    def _look_at_gpus(self) -> None:
        now = self.on_device()
        if now is not None:
            self._device = max(now, self._device or 0)
