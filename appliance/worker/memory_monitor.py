"""Measures the memory of one worker process, and compares it with a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.machine import process_memory
from appliance.machine.gpus import Gpus

#: A worker process may exceed its limit of main memory by a tenth, or by this many bytes if that is more.
#: Some libraries are loaded late, and some objects are freed only at the next garbage collection.
TOLERANCE: Final = 0.1
LEAST_TOLERANCE: Final = 128 * 1024**2
_STEP: Final = 1024**2  # bytes; a peak that is less than this above the last one is ignored


class MemoryUsage(msgspec.Struct, frozen=True):
    """Peak memory of a worker process and its children since its start."""

    main: int  # bytes of main memory, without memory that the process shares with the zygote
    device: int | None = None  # bytes of GPU memory, on the GPU with the highest use; None if unknown


class MemoryMonitor:
    """Measures one worker process. ``measure`` may run in any thread, but only in one thread at a time."""

    def __init__(self, group: int, devices: Sequence[str], limit: int | None) -> None:
        """``group`` is the process group, ``devices`` are its GPUs, ``limit`` is in bytes of main memory.

        GPU memory has no limit here, because the GPU's driver refuses to allocate more than there is.
        """
        self._group = group
        self._devices = devices
        self._gpus = Gpus.connect() if devices else None
        self.limit = limit
        self.over: int | None = None  # measured bytes of main memory that exceeded the limit
        self._inherited = process_memory.inherited(group)
        self._ready = False
        self._anonymous = 0  # the highest value since file-backed memory was measured
        self._main = 0
        self._device: int | None = None

    @property
    def peak(self) -> MemoryUsage:
        return MemoryUsage(self._main, self._device)

    def ready(self) -> None:
        """Count file-backed memory from now on, because a loaded model uses the weight files that it maps."""
        self._ready = True
        self._anonymous = 0

    def measure(self) -> bool:
        """Measure the memory; return whether there is a new peak. Sets ``over`` if the limit is exceeded."""
        before = self.peak
        anonymous = process_memory.anonymous(self._group, self._inherited)
        if anonymous > self._anonymous + _STEP:
            self._anonymous = anonymous
            files = process_memory.file_backed(self._group) if self._ready else 0
            self._main = max(self._main, anonymous + files)
        if self.limit is not None and anonymous > self.limit + max(self.limit * TOLERANCE, LEAST_TOLERANCE):
            self.over = anonymous
        device = self.gpu_memory()
        if device is not None:
            self._device = max(device, self._device or 0)
        return self._main > before.main + _STEP or (self._device or 0) > (before.device or 0) + _STEP

    def gpu_memory(self) -> int | None:
        """Return the bytes that the process uses now on the GPU with its highest use; None if unknown."""
        if self._gpus is None:
            return None
        pids = process_memory.members(self._group)
        sizes = [self._gpus.used_by(device, pids) for device in self._devices]
        return max((size for size in sizes if size is not None), default=None)
