"""Measures device memory for the scheduler, and waits until the memory of an unloaded model is free."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from appliance.scheduler import Scheduler, Unload

_log = logging.getLogger(__name__)

#: Seconds after which a measurement is out of date.
FRESH: Final = 0.2
#: Seconds to wait for a GPU driver to free the memory of a process that has ended.
PATIENCE: Final = 10.0
POLL: Final = 0.05  # seconds between measurements while waiting
STILL: Final = 6  # equal measurements in a row after which no more memory is expected to become free
#: Share of its peak that a model must free; it may have freed some of its peak before the unload.
_MOST: Final = 0.8


class DeviceMemory:
    """Measures devices on behalf of the scheduler."""

    def __init__(
        self,
        scheduler: Scheduler,
        in_use: Callable[[], dict[str, int]],
        kinds: Mapping[str, str],
        measure_now: Callable[[Iterable[str]], Awaitable[None]],
    ) -> None:
        """``in_use`` returns the bytes in use of each device that can be measured.

        ``kinds`` maps each device to ``cpu`` or ``cuda``. ``measure_now`` measures devices of other nodes,
        which ``in_use`` does not wait for.
        """
        self._scheduler = scheduler
        self._in_use = in_use
        self._kinds = kinds
        self._measure_now = measure_now
        self._measured_at = float("-inf")

    def update(self, now: float) -> None:
        """Measure device memory if a model waits to be loaded and the last measurement is out of date."""
        if now >= self._measured_at + FRESH and self._scheduler.has_waiting_models(now):
            self.refresh()

    def refresh(self) -> None:
        """Measure the bytes in use of each device and report them to the scheduler."""
        now = self._measured_at = time.monotonic()
        for device, memory in self._in_use().items():
            self._scheduler.device_used(device, memory, now)

    def usage_of_gpus(self, devices: Sequence[str]) -> dict[str, int]:
        """Return the bytes in use of each GPU among ``devices``."""
        gpus = [device for device in devices if self._kinds.get(device) == "cuda"]
        return self._measure(gpus) if gpus else {}

    async def wait_until_freed(self, decided: Unload, before: dict[str, int]) -> None:
        """Return once the GPU memory of an unloaded model, whose worker process has ended, is free.

        ``before`` is the result of ``usage_of_gpus`` before the unload. After ``PATIENCE`` seconds, memory
        that is still in use is attributed to other programs.
        """
        if not before:
            return
        expected = int(decided.peak * _MOST)
        deadline = time.monotonic() + PATIENCE
        last, still = before, 0
        while time.monotonic() < deadline:
            await self._measure_now(before)
            found = self._measure(list(before))
            gone = [before[device] - found.get(device, 0) for device in before]
            still = still + 1 if found == last else 0
            last = found
            if min(gone) > 0 and (min(gone) >= expected > 0 or still >= STILL):
                break
            await asyncio.sleep(POLL)
        else:
            text = (
                "the GPU memory of model %s is not free %.1f s after the unload: "
                "it counts as used by other programs"
            )
            _log.warning(text, decided.model, PATIENCE, extra={"model": decided.model})

    def _measure(self, devices: Sequence[str]) -> dict[str, int]:
        found = self._in_use()
        return {device: found[device] for device in devices if device in found}
