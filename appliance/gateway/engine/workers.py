"""The engine's side of hosts that are loaded: their events are read, they turn, and they leave.

What is said of a host counts only while it is the one that is loaded: a host that is being unloaded cannot be
lost any more, and nothing is read of it once it is gone, since its model may be loaded again by then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

from appliance.cluster.base import Cluster
from appliance.domain.errors import OutOfMemory, WorkerLost
from appliance.domain.prediction import Emitted
from appliance.gateway.engine.device_memory import DeviceMemory
from appliance.gateway.engine.memory_profiles import MemoryProfiles
from appliance.scheduler import Residency, Scheduler
from appliance.worker.memory_monitor import MemoryUsage

_log = logging.getLogger(__name__)

#: A host is there, and is not being ended.
_THERE: Final = frozenset(Residency) - {Residency.COLD, Residency.LOADING, Residency.UNLOADING}


class WorkerListener(Protocol):
    """Who owns the predictions."""

    def apply(self, model: str, emitted: Emitted) -> None:
        """Take in one event of a model's host."""

    def host_lost(self, model: str, reason: str, *, out_of_memory: bool = False, again: bool = True) -> None:
        """The host is gone."""

    def decide(self) -> None:
        """Something has changed."""

    def renew(self, key: str) -> None:
        """The model may have to be loaded again."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it beside."""
        ...


class Workers:
    """Of one engine."""

    def __init__(
        self,
        cluster: Cluster,
        scheduler: Scheduler,
        sizes: MemoryProfiles,
        room: DeviceMemory,
        listener: WorkerListener,
    ) -> None:
        """Nothing is followed yet."""
        self._cluster = cluster
        self._scheduler = scheduler
        self._sizes = sizes
        self._room = room
        self._listener = listener
        self._readers: dict[str, asyncio.Task[None]] = {}  # by model that is loaded
        self._turns: dict[str, asyncio.Task[None]] = {}  # by model that falls asleep or wakes

    def follow(self, model: str) -> None:
        """Apply the events of a model that is loaded, until it is unloaded or lost."""
        self._readers[model] = self._listener.spawn(self._follow(model))

    async def _follow(self, model: str) -> None:
        try:
            while self._there(model):  # a late request of an earlier reader may have taken this one's place
                await self._read(model)
        except WorkerLost as error:
            if self._there(model):
                self._lost(model, error)
        except Exception as error:  # noqa: BLE001  # after any error the host's predictions must end
            _log.exception("the events of model %s could not be read", model, extra={"model": model})
            self._listener.spawn(self.kill(model, f"its events could not be read: {error}"))

    def _lost(self, model: str, error: WorkerLost) -> None:
        if model in self._turns:  # what it was asked must not reach the next one
            self._turns.pop(model).cancel()
        if isinstance(error, OutOfMemory):
            verdict = self._sizes.out_of_memory(model, error)
            self._listener.host_lost(model, verdict.sentence, out_of_memory=True, again=verdict.grown)
        else:
            self._listener.host_lost(model, error.detail)

    async def _read(self, model: str) -> None:
        async for batch in self._cluster.events(model):
            if isinstance(batch, MemoryUsage):
                self._sizes.measured(model, batch)
            else:
                for emitted in batch:
                    self._listener.apply(model, emitted)
            self._listener.decide()

    def _there(self, model: str) -> bool:
        return self._scheduler.residency(model) in _THERE

    def turn(self, model: str, turning: Callable[[], Awaitable[str | None]]) -> None:
        """Let a model fall asleep or wake; if it cannot, its host is ended, and it never sleeps again.

        ``turning`` does it, and says why it could not.
        """
        self._turns[model] = self._listener.spawn(self._turn(model, turning))

    async def _turn(self, model: str, turning: Callable[[], Awaitable[str | None]]) -> None:
        trouble = await turning()
        self._turns.pop(model, None)
        if trouble is not None and self._there(model):
            self._scheduler.sleepless(model)
            await self.kill(model, trouble)
        self._listener.renew(model)
        self._listener.decide()

    async def unload(self, model: str) -> None:
        """End the host of a model on which nothing runs, as was decided."""
        before = self._room.before(model)
        await self._end(model)
        await self._room.given_back(model, before)
        self._scheduler.unloaded(model, time.monotonic())
        if before:
            self._room.refresh()
        self._sizes.keep(model)
        self._sizes.gone(model)
        self._listener.decide()

    async def kill(self, model: str, why: str) -> None:
        """End a host whatever runs there; nothing happens if it is gone, or is being ended already."""
        if not self._there(model):
            return
        self._scheduler.stopping(model, time.monotonic(), why)
        await self._end(model)
        self._listener.host_lost(model, f"its engine host was stopped: {why}")

    async def _end(self, model: str) -> None:
        await self._cluster.unload(model)
        reader = self._readers.pop(model, None)
        if reader is not None:
            reader.cancel()
