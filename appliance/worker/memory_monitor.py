"""Measure the memory of one worker process, and whether it exceeds its limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.machine import process_memory
from appliance.machine.gpus import Gpus

#: A worker process may use a tenth more main memory than its limit, or this many bytes if that is more,
#: because some libraries are loaded late and some objects are freed only at the next garbage collection.
TOLERANCE: Final = 0.1
LEAST_TOLERANCE: Final = 128 * 1024**2
_STEP: Final = 1024**2  # bytes that a new peak is higher than the last one, at least


class MemoryUsage(msgspec.Struct, frozen=True):
    """Peak memory of a worker process and its children since its start."""

    main: int  # bytes of main memory, without the memory that a forked worker process shares with the zygote
    device: int | None = None  # bytes of the GPU on which it uses most; None if unknown


class MemoryMonitor:
    """Measures one worker process. ``measure`` may run in any thread, but in one at a time."""

    def __init__(self, group: int, devices: Sequence[str], limit: int | None) -> None:
        """``group`` is the process group, ``devices`` are its GPUs, ``limit`` is bytes of main memory.

        GPU memory has no limit here: the models reserve it, and the GPU's driver refuses more than there is.
        """
        self._group = group
        self._devices = devices
        self._gpus = Gpus.connect() if devices else None
        self.limit = limit
        self.over: int | None = None  # bytes of main memory, measured when it exceeded the limit
        self._inherited = process_memory.inherited(group)
        self._ready = False
        self._anonymous = 0  # the highest value since file-backed memory was measured
        self._main = 0
        self._device: int | None = None

    @property
    def peak(self) -> MemoryUsage:
        return MemoryUsage(self._main, self._device)

    def ready(self) -> None:
        """Count file-backed memory from now on: the model is loaded, and it uses the weights that it maps."""
        self._ready = True
        self._anonymous = 0

    def measure(self) -> bool:
        """Measure; return whether there is a new peak. ``over`` is set if the limit is exceeded."""
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
        """Return the bytes in use now on the GPU on which it uses most; None if unknown."""
        if self._gpus is None:
            return None
        pids = process_memory.members(self._group)
        sizes = [self._gpus.used_by(device, pids) for device in self._devices]
        return max((size for size in sizes if size is not None), default=None)
