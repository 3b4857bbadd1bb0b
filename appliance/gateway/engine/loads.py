"""Carrying out the scheduler's loads, and telling whoever waits for one how it ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from appliance import weights
from appliance.cluster.base import Adopted, Cluster
from appliance.config import LimitsConfig
from appliance.domain.errors import LoadFailed, OutOfMemory, SleepFailed, WorkerLost
from appliance.gateway.catalogue.catalogue import Catalogue, Entry
from appliance.gateway.engine.memory_profiles import MemoryProfiles
from appliance.gateway.engine.prefetch import Prefetch
from appliance.machine import Device, disk, joint_sku
from appliance.runners.base import LoadSpec
from appliance.scheduler import Level, Residency, Scheduler, Sleep
from appliance.store import RETRY_STORE

_log = logging.getLogger(__name__)

ATTEMPTS: Final = 3  # loads in a row that lose their host before what waits fails


class Failure(NamedTuple):
    """A load that is given up: why, and the predictions that waited for it."""

    reason: str
    waiting: list[str]


class Loads:
    """Loads one model at a time per device, as the scheduler says; owns no prediction."""

    def __init__(
        self,
        catalogue: Catalogue,
        cluster: Cluster,
        scheduler: Scheduler,
        limits: LimitsConfig,
        sizes: MemoryProfiles,
        *,
        home: Path,
        threads: int,
        devices: Sequence[Device],
    ) -> None:
        """``home`` is the data folder, ``threads`` and ``devices`` what the machine has."""
        self._catalogue = catalogue
        self._cluster = cluster
        self._scheduler = scheduler
        self.limits = limits
        self._sizes = sizes
        self._home = home
        self._prefetch = Prefetch(catalogue, scheduler, home)
        self._threads = threads
        self._devices = {device.name: device for device in devices}
        self._told: dict[str, dict[str, Any]] = {}  # by what is loaded: the options it was loaded with
        self._lost: dict[str, int] = {}
        self._starved: set[str] = set()  # what ran out of memory while it was loaded, and is tried again
        self._ready: dict[str, asyncio.Future[None]] = {}

    def ahead(self, now: float) -> None:
        """Read the weights of what is loaded next; call it after each decision."""
        self._prefetch.look(now)

    def close(self) -> None:
        """Read nothing more."""
        self._prefetch.close()

    async def ready(self, name: str) -> None:
        """Return when the model's next load is done.

        Raises:
            LoadFailed: it was given up.
        """
        future = self._ready.get(name)
        if future is None:
            future = self._ready[name] = asyncio.get_running_loop().create_future()
        await asyncio.shield(future)

    def of(self, model: str) -> list[str]:
        """The instances of the model that were loaded since this gateway began, and may be still."""
        return [key for key in self._told if key.partition("#")[0] == model]

    def current(self, entry: Entry) -> bool:
        """Whether it would be loaded now as it was."""
        return self._told.get(entry.runs_on, {}) in ({}, self._catalogue.options(entry))

    async def load(self, entry: Entry, devices: tuple[str, ...], memory: int) -> Failure | None:
        """Load ``entry`` and tell the scheduler how it went; None if it is ready or will be tried again."""
        name = entry.runs_on
        try:
            spec = self._spec(entry, devices, memory)
            self._told[name] = spec.options
            async with asyncio.timeout(self.limits.load_timeout):
                levels = await self._cluster.load(spec)
        except TimeoutError:
            await self._cluster.unload(name)
            return self._failed(name, f"model {name} was not ready after {self.limits.load_timeout:g} s")
        except OutOfMemory as error:
            return self._out_of_memory(name, error)
        except (LoadFailed, WorkerLost) as error:
            if await self._waited_for_space(name):
                self._scheduler.lost(name, time.monotonic(), "the disk was full")
                return None
            if isinstance(error, WorkerLost):
                return self._host_lost(name, error.detail)
            return self._failed(name, error.detail)
        except Exception as error:  # noqa: BLE001  # any error must end the wait of predictions
            _log.exception("model %s could not be loaded", name, extra={"model": name})
            await self._cluster.unload(name)
            return self._failed(name, f"model {name} could not be loaded: {error}")
        self._lost.pop(name, None)
        self._starved.discard(name)
        self._scheduler.loaded(name, time.monotonic(), map(Level, levels))
        self._settle(name, None)
        return None

    async def adopt(self, adopted: Adopted) -> bool:
        """Keep what an earlier gateway left loaded, if it would be loaded so again; else unload it.

        What was falling asleep or waking is unloaded too: nobody waits for it, and nothing ran there.
        """
        spec = adopted.spec
        kept = self._catalogue.hosts(spec) and not adopted.turning
        if kept and adopted.level is not None:
            kept = self._scheduler.demand(spec.model).asleep is not None
        if not kept:
            await self._cluster.unload(spec.model)
            return False
        self._scheduler.adopted(
            spec.model,
            spec.placement,
            spec.memory,
            time.monotonic(),
            levels=map(Level, adopted.levels),
            level=None if adopted.level is None else Level(adopted.level),
        )
        return True

    async def sleep(self, decided: Sleep) -> str | None:
        """Have a model fall asleep and tell the scheduler; returns why its host must be ended, if it must."""
        name = decided.model
        try:
            async with asyncio.timeout(self.limits.load_timeout):
                left = await self._cluster.sleep(name, decided.level)
        except TimeoutError:
            return f"it was not asleep after {self.limits.load_timeout:g} s"
        except SleepFailed as error:
            return error.detail
        except WorkerLost:
            return None  # whoever reads its events hears of it too
        except Exception as error:  # noqa: BLE001  # any error must end the wait of predictions
            _log.exception("model %s could not be put to sleep", name, extra={"model": name})
            return f"it could not be put to sleep: {error}"
        if left is not None and left > decided.residue:
            return f"it sleeps, but still holds {left} bytes of its device; {decided.residue} may be left"
        if self._is(name, Residency.FALLING_ASLEEP):
            self._scheduler.asleep(name, time.monotonic())
        return None

    def _is(self, name: str, state: Residency) -> bool:
        """Whether it is still so: its host may have died meanwhile."""
        return self._scheduler.knows(name) and self._scheduler.residency(name) is state

    async def wake(self, name: str) -> str | None:
        """Wake a model and tell the scheduler; returns why its host must be ended, if it must."""
        try:
            async with asyncio.timeout(self.limits.load_timeout):
                await self._cluster.wake(name)
        except TimeoutError:
            return f"it was not awake after {self.limits.load_timeout:g} s"
        except SleepFailed as error:
            return error.detail
        except WorkerLost:
            return None  # the same
        except Exception as error:  # noqa: BLE001  # any error must end the wait of predictions
            _log.exception("model %s could not be woken", name, extra={"model": name})
            return f"it could not be woken: {error}"
        if self._is(name, Residency.WAKING):
            self._scheduler.woken(name, time.monotonic())
            self._settle(name, None)
        return None

    def hardware(self, name: str) -> str:
        """The SKU of what it is loaded on."""
        return joint_sku(self._devices[device].sku for device in self._scheduler.devices(name))

    def _spec(self, entry: Entry, devices: tuple[str, ...], memory: int) -> LoadSpec:
        model = entry.model
        # A logical device is the CPU under another name.
        device = ",".join(devices) if self._devices[devices[0]].kind == "cuda" else "cpu"
        return LoadSpec(
            model=entry.runs_on,
            version=entry.version,
            kind=entry.kind,
            options=self._catalogue.options(entry),
            weights=None if model.source is None else str(weights.folder(self._home, model)),
            device=device,
            placement=devices,
            memory=memory,
            limit=self._sizes.limit(entry.runs_on),
            threads=model.threads or self._threads,
            concurrency=1 if entry.kind != model.kind else model.options.predictions_at_once,
            cache=str(self._home / "cache" / entry.kind),
            sleeps=self._scheduler.demand(entry.runs_on).asleep is not None,
        )

    def _failed(self, name: str, reason: str) -> Failure:
        self._lost.pop(name, None)
        self._starved.discard(name)
        waiting = self._scheduler.load_failed(name, time.monotonic(), reason)
        self._settle(name, LoadFailed(reason))
        return Failure(reason, waiting)

    async def _waited_for_space(self, name: str) -> bool:
        """Wait until the disk has space; return False at once if it has.

        Hosts write pid files, logs and caches, so a load that fails on a full disk is not the model's fault.
        """
        waited = False
        while await asyncio.to_thread(disk.full, self._home):
            if not waited:
                text = "the disk of %s is full: model %s is loaded once there is space: free some"
                _log.error(text, self._home, name, extra={"model": name})
            waited = True
            await asyncio.sleep(RETRY_STORE)
        return waited

    def _host_lost(self, name: str, reason: str) -> Failure | None:
        """A host that dies while it loads may have been killed from outside: try again, but not for ever."""
        self._lost[name] = self._lost.get(name, 0) + 1
        if self._lost[name] >= ATTEMPTS:
            return self._failed(name, reason)
        _log.warning("model %s: %s; it is loaded again", name, reason, extra={"model": name})
        self._scheduler.lost(name, time.monotonic(), reason)
        return None

    def _out_of_memory(self, name: str, error: OutOfMemory) -> Failure | None:
        """It is loaded once more, if it gets more memory then."""
        verdict = self._sizes.out_of_memory(name, error)
        if not verdict.grown or name in self._starved:
            return self._failed(name, verdict.sentence)
        self._starved.add(name)
        _log.warning("model %s: %s", name, verdict.sentence)
        self._scheduler.lost(name, time.monotonic(), error.detail)
        return None

    def _settle(self, name: str, error: LoadFailed | None) -> None:
        future = self._ready.pop(name, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # whoever asked may have gone: then nobody needs to hear of it
