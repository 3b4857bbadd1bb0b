"""Memory profiles: the measured memory use of each model, kept in the store between starts."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from appliance.cluster.base import Cluster
from appliance.domain.errors import OutOfMemory
from appliance.domain.units import readable_bytes
from appliance.gateway.catalogue.catalogue import Catalogue, ServedVersion
from appliance.scheduler import Origin, Scheduler
from appliance.store import MemoryProfileRow, Store
from appliance.worker.memory_monitor import MemoryUsage

#: A peak is stored again if it differs from the stored peak by more than this share.
_STEP: Final = 0.01


class OutOfMemoryAdvice(msgspec.Struct, frozen=True):
    """Advice after a worker process ran out of memory, and whether the next load gets more memory."""

    sentence: str
    grown: bool


class MemoryProfiles:
    """Measures and stores memory profiles. One per engine; used on its event loop only."""

    def __init__(
        self,
        catalogue: Catalogue,
        scheduler: Scheduler,
        cluster: Cluster,
        store: Store,
        kind: str,
    ) -> None:
        """``kind`` is that of the devices that models are placed on first: ``cpu`` or ``cuda``."""
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._cluster = cluster
        self._store = store
        self._device_kind = kind
        self._kept: dict[tuple[str, str], MemoryProfileRow] = {}  # by `Catalogue.loads_as` and kind of device
        self._recalled: set[str] = set()
        self._main: dict[str, int] = {}  # by model: peak bytes of main memory
        self._limits: dict[
            str, int
        ] = {}  # by model: the last limit in bytes that was sent to its worker process

    async def load(self) -> None:
        """Read the stored profiles, and give the scheduler the profiles of its models."""
        rows = await self._store.memory_profiles.all()
        self._kept = {(row.loaded, row.device): row for row in rows}
        for model in self._scheduler.models:
            self.restore(self._catalogue.entry_for(model))

    def restore(self, entry: ServedVersion) -> None:
        """Pass the stored profile of a model to the scheduler, once."""
        model = entry.runs_on
        if model in self._recalled:
            return
        self._recalled.add(model)
        row = self._kept.get((self._catalogue.loads_as(entry), self._kind(model)))
        if row is not None:
            self._main[model] = row.main
            self._scheduler.footprints.restore_peak(model, row.peak)

    def reset(self, entry: ServedVersion) -> None:
        """Replace the profile of a changed model once its former version is unloaded."""
        self._recalled.discard(entry.runs_on)
        self.unloaded(entry.runs_on)

    def unloaded(self, model: str) -> None:
        """Pass the profile of a changed model to the scheduler, because its former version was unloaded."""
        if not self._scheduler.is_outdated(model):
            self.restore(self._catalogue.entry_for(model))

    def _kind(self, model: str) -> str:
        """Return the kind of the devices that hold the model: ``cpu`` or ``cuda``."""
        return "cpu" if self._scheduler.demand(model).on_cpu else self._device_kind

    def measured(self, model: str, taken: MemoryUsage) -> None:
        if self._scheduler.is_outdated(model):
            return
        peak = taken.main if self._kind(model) == "cpu" else taken.device
        self._main[model] = max(taken.main, self._main.get(model, 0))
        if peak:
            self._scheduler.footprints.record_peak(model, peak, time.monotonic())
            self.keep(model)

    def out_of_memory(self, model: str, error: OutOfMemory) -> OutOfMemoryAdvice:
        """Record that the model's worker process ran out of memory; return advice for the next load."""
        if self._scheduler.is_outdated(model):
            return OutOfMemoryAdvice(f"Out of memory: {error.detail}", grown=False)
        entry = self._catalogue.entry_for(model)
        # In main memory the limit was the free memory; on a GPU the model uses its configured memory.
        footprints = self._scheduler.footprints
        available = footprints.limit(model) if self._kind(model) == "cpu" else None
        grown = footprints.record_out_of_memory(
            model, error.memory, time.monotonic(), error.detail, available
        )
        self.keep(model)
        demand = self._scheduler.demand(model)
        lower = entry.model.options.OOM_HINT
        if demand.origin is Origin.DECLARED:
            key = "memory" if demand.memory is not None else "gpu"
            advice = f"raise {key} of {entry.model.name} in models.yaml, or {lower}"
        elif grown and demand.memory is not None:
            advice = f"its next load gets {readable_bytes(demand.memory)}; if that is not enough, {lower}"
        else:
            advice = f"this machine has no more memory for it: {lower}, or choose a smaller model"
        return OutOfMemoryAdvice(f"Out of memory: {error.detail}; {advice}", grown)

    def keep(self, model: str) -> None:
        if self._scheduler.is_outdated(model):
            return
        known = self._scheduler.footprints.of(model)
        if known.peak is None or known.demand.origin is Origin.ESTIMATED:
            return
        entry = self._catalogue.entry_for(model)
        loaded, device = self._catalogue.loads_as(entry), self._kind(model)
        before = self._kept.get((loaded, device))
        if before is not None and abs(before.peak - known.peak) <= before.peak * _STEP:
            return
        row = self._kept[loaded, device] = MemoryProfileRow(
            loaded=loaded,
            device=device,
            model=entry.model.name,
            peak=known.peak,
            main=self._main.get(model, 0),
            measured_at=time.time(),
        )
        self._store.memory_profiles.put(row)

    def limit(self, model: str) -> int | None:
        """Return the bytes of main memory that the model may use; None if the model is on a GPU."""
        limit = self._scheduler.footprints.limit(model) if self._kind(model) == "cpu" else None
        if limit is not None:
            self._limits[model] = limit
        return limit

    def adopted(self, model: str) -> None:
        """Let ``send_limits`` send an adopted model's worker process its limit, which may have changed."""
        if self._kind(model) == "cpu":
            self._limits[model] = 0

    def send_limits(self) -> None:
        for model, before in list(self._limits.items()):
            known = self._scheduler.knows(model)
            limit = self._scheduler.footprints.limit(model) if known else None
            if limit is None:
                del self._limits[model]
            elif limit != before:
                self._limits[model] = limit
                self._cluster.limit(model, limit)
