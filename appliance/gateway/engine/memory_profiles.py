"""What hosts were found to take: told to the scheduler, and kept between starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import msgspec

from appliance.cluster.base import Cluster
from appliance.domain.errors import OutOfMemory
from appliance.gateway.catalogue.catalogue import Catalogue, Entry
from appliance.scheduler import Origin, Scheduler
from appliance.store import FootprintRow, Store
from appliance.worker.memory_monitor import MemoryUsage

#: Peaks that differ by a smaller share are not written anew.
_STEP: Final = 0.01


class Verdict(msgspec.Struct, frozen=True):
    """What is to be said of a host that ran out of memory, and whether its next one will have more."""

    sentence: str
    grown: bool


class MemoryProfiles:
    """One per engine; used on its loop only."""

    def __init__(
        self,
        catalogue: Catalogue,
        scheduler: Scheduler,
        cluster: Cluster,
        store: Store,
        kinds: Mapping[str, str],
    ) -> None:
        """``kinds`` has cpu or cuda by device."""
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._cluster = cluster
        self._store = store
        self._kinds = kinds
        self._kept: dict[tuple[str, str], FootprintRow] = {}  # by what is loaded, and the kind of device
        self._recalled: set[str] = set()
        self._main: dict[str, int] = {}  # model -> the most it has taken of main memory
        self._limits: dict[str, int] = {}  # model -> what its replica was told

    async def load(self) -> None:
        """Take up what earlier runs have found."""
        rows = await self._store.footprints.all()
        self._kept = {(row.loaded, row.device): row for row in rows}
        for model in self._scheduler.models:
            self.recall(self._catalogue.hosted(model))

    def recall(self, entry: Entry) -> None:
        """Tell the scheduler what is known of a model that it may not have heard of before."""
        model = entry.runs_on
        if model in self._recalled:
            return
        self._recalled.add(model)
        row = self._kept.get((self._catalogue.loads_as(entry), self._kind(model)))
        if row is not None:
            self._main[model] = row.main
            self._scheduler.footprints.recalled(model, row.peak)

    def renewed(self, entry: Entry) -> None:
        """The model is another one from now on; what is known of it counts once nothing else is loaded."""
        self._recalled.discard(entry.runs_on)
        self.gone(entry.runs_on)

    def gone(self, model: str) -> None:
        """Nothing is loaded for the model any more."""
        if not self._scheduler.replaced(model):
            self.recall(self._catalogue.hosted(model))

    def _kind(self, model: str) -> str:
        """Of the devices that the model is placed on: cpu or cuda."""
        return "cpu" if self._scheduler.demand(model).on_host else next(iter(self._kinds.values()))

    def measured(self, model: str, taken: MemoryUsage) -> None:
        """The host of the model has taken so much, at most."""
        if self._scheduler.replaced(model):
            return
        peak = taken.main if self._kind(model) == "cpu" else taken.device
        self._main[model] = max(taken.main, self._main.get(model, 0))
        if peak:
            self._scheduler.footprints.measured(model, peak, time.monotonic())
            self.keep(model)

    def out_of_memory(self, model: str, error: OutOfMemory) -> Verdict:
        """The host of the model is gone because it ran out of memory."""
        if self._scheduler.replaced(model):
            return Verdict(f"Out of memory: {error.detail}", grown=False)
        entry = self._catalogue.hosted(model)
        # In main memory it could take what nobody held; of a GPU a host takes what it is told to.
        footprints = self._scheduler.footprints
        had = footprints.limit(model) if self._kind(model) == "cpu" else None
        grown = footprints.out_of_memory(model, error.took, time.monotonic(), error.detail, had)
        self.keep(model)
        demand = self._scheduler.demand(model)
        lower = entry.model.options.OOM_HINT
        if demand.origin is Origin.DECLARED:
            key = "memory" if demand.memory is not None else "gpu"
            advice = f"raise {key} of {entry.model.name} in models.yaml, or {lower}"
        elif grown:
            advice = f"its next load gets {demand.memory:,}; if that is not enough, {lower}"
        else:
            advice = f"there is no more for it on this machine: {lower}, or choose a smaller model"
        return Verdict(f"Out of memory: {error.detail}; {advice}", grown)

    def keep(self, model: str) -> None:
        """Store what is expected of the model, where that has changed."""
        if self._scheduler.replaced(model):
            return
        known = self._scheduler.footprints.of(model)
        if known.peak is None or known.demand.origin is Origin.ESTIMATED:
            return
        entry = self._catalogue.hosted(model)
        loaded, device = self._catalogue.loads_as(entry), self._kind(model)
        before = self._kept.get((loaded, device))
        if before is not None and abs(before.peak - known.peak) <= before.peak * _STEP:
            return
        row = self._kept[loaded, device] = FootprintRow(
            loaded=loaded,
            device=device,
            model=entry.model.name,
            peak=known.peak,
            main=self._main.get(model, 0),
            measured_at=time.time(),
        )
        self._store.footprints.put(row)

    def limit(self, model: str) -> int | None:
        """What a host of the model may take of main memory; None where its device has memory of its own."""
        limit = self._scheduler.footprints.limit(model) if self._kind(model) == "cpu" else None
        if limit is not None:
            self._limits[model] = limit
        return limit

    def adopted(self, model: str) -> None:
        """An earlier gateway has told its host what it may take: that may be different now."""
        if self._kind(model) == "cpu":
            self._limits[model] = 0

    def tell_limits(self) -> None:
        """Let hosts know where what they may take has changed."""
        for model, before in list(self._limits.items()):
            known = self._scheduler.knows(model)
            limit = self._scheduler.footprints.limit(model) if known else None
            if limit is None:
                del self._limits[model]
            elif limit != before:
                self._limits[model] = limit
                self._cluster.limit(model, limit)
