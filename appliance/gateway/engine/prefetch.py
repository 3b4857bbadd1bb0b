"""Reads the weights of the next model into the page cache while other models are still being evicted."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Final

from appliance import machine, weights
from appliance.domain.units import readable_bytes
from appliance.gateway.catalogue.catalogue import Catalogue, ServedVersion
from appliance.scheduler import Residency, Scheduler

_log = logging.getLogger(__name__)

#: Share of the available main memory that may be filled; the rest is left for the load itself.
SHARE: Final = 0.5


class Prefetch:
    """Reads weights in a thread of the gateway, which is on the machine where models are loaded."""

    def __init__(self, catalogue: Catalogue, scheduler: Scheduler, home: Path) -> None:
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._home = home
        self._model: str | None = None  # the model that is loaded next
        self._stop = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def update(self, now: float) -> None:
        """Begin to read the weights of the model that is loaded next. Call this after each decision."""
        following = self._next(now)
        if following == self._model:
            return
        # Reading goes on after the load has begun, because it still speeds up the load.
        if following is not None or self._scheduler.residency(self._model or "") is Residency.COLD:
            self._stop.set()
        self._model = following
        if following is not None:
            self._stop = threading.Event()
            reading = self._read(self._catalogue.entry_for(following), self._stop)
            self._task = asyncio.get_running_loop().create_task(reading)

    def close(self) -> None:
        self._stop.set()

    def _next(self, now: float) -> str | None:
        if not self._scheduler.has_waiting_models(now):
            return None
        for waiting in self._scheduler.load_queue(now):
            if self._scheduler.residency(waiting.model) is Residency.COLD:
                return waiting.model
        return None

    async def _read(self, entry: ServedVersion, stop: threading.Event) -> None:
        if entry.model.source is None or entry.kind == "cog":  # most of its folder is a Python environment
            return
        folder = weights.folder(self._home, entry.model)
        budget = int(machine.available_memory() * SHARE)
        done = await asyncio.to_thread(weights.read_ahead, folder, budget, stop)
        name = entry.runs_on
        text = "read %s of the weights of model %s into the page cache"
        _log.info(text, readable_bytes(done), name, extra={"model": name})
