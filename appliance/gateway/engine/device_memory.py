"""What of the devices others use: told to the scheduler before it decides, and waited for after an unload."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from appliance.scheduler import Scheduler

_log = logging.getLogger(__name__)

#: Seconds for which what was found in use is believed.
FRESH: Final = 0.2
#: A driver gives memory back a little after the processes are gone: for how long that is waited for.
PATIENCE: Final = 10.0
LOOK: Final = 0.05  # seconds between looks
STILL: Final = 6  # looks without a change after which no more is expected
#: Of what a model has taken at most, it may have given back a part before.
_MOST: Final = 0.8


class DeviceMemory:
    """One per engine."""

    def __init__(
        self, scheduler: Scheduler, in_use: Callable[[], dict[str, int]], kinds: Mapping[str, str]
    ) -> None:
        """``in_use`` says how many bytes of each device anybody uses, as far as that is known."""
        self._scheduler = scheduler
        self._in_use = in_use
        self._kinds = kinds
        self._looked = float("-inf")

    def look(self, now: float) -> None:
        """Tell the scheduler what is in use, if a model waits to be loaded and that is not known already."""
        if now >= self._looked + FRESH and self._scheduler.waits(now):
            self.refresh()

    def refresh(self) -> None:
        """Tell the scheduler what is in use now; what no model holds of it is someone else's."""
        now = self._looked = time.monotonic()
        for device, memory in self._in_use().items():
            self._scheduler.used(device, memory, now)

    def before(self, model: str) -> dict[str, int]:
        """What is in use of the GPUs of a model that is about to be unloaded."""
        gpus = [device for device in self._scheduler.devices(model) if self._kinds[device] == "cuda"]
        return self._of(gpus) if gpus else {}

    async def given_back(self, model: str, before: dict[str, int]) -> None:
        """Return once the memory that the model had, whose host is gone, can be used again.

        Where it does not come back in time it counts as foreign from then on, until it does.
        """
        if not before:
            return
        expected = int((self._scheduler.footprints.of(model).peak or 0) * _MOST)
        deadline = time.monotonic() + PATIENCE
        last, still = before, 0
        while time.monotonic() < deadline:
            found = self._of(list(before))
            gone = [before[device] - found.get(device, 0) for device in before]
            still = still + 1 if found == last else 0
            last = found
            if min(gone) > 0 and (min(gone) >= expected > 0 or still >= STILL):
                break
            await asyncio.sleep(LOOK)
        else:
            _log.warning("the memory of model %s did not come back in %g s", model, PATIENCE)

    def _of(self, devices: Sequence[str]) -> dict[str, int]:
        found = self._in_use()
        return {device: found[device] for device in devices if device in found}
