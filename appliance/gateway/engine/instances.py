"""Instances of a model: how many may be loaded, and which instance gets a prediction.

Each instance is loaded under its own key, ``owner/name`` for the first and ``owner/name#2`` and so on for the
others. The scheduler treats each instance as a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from appliance.domain.deployment import Release
from appliance.gateway.catalogue.catalogue import Catalogue, ServedVersion
from appliance.scheduler import Demand, Residency, Scheduler

#: Seconds without a prediction after which an instance other than the first is unloaded.
IDLE: Final = 60.0


def key_of(runs_on: str, number: int) -> str:
    return runs_on if number == 1 else f"{runs_on}#{number}"


def _further(demand: Demand, key: str) -> Demand:
    return msgspec.structs.replace(demand, model=key, pin=False, preload=False, idle_unload_after=IDLE)


class Instances:
    """How many instances each model may have, and which exist."""

    def __init__(self, catalogue: Catalogue, scheduler: Scheduler) -> None:
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._allowed: dict[str, int] = {}
        self._known: dict[str, int] = {}

    def keys(self, runs_on: str) -> list[str]:
        """Return the keys of all instances, including those that are no longer used."""
        return [key_of(runs_on, number) for number in range(1, self._known.get(runs_on, 1) + 1)]

    def scale(self, runs_on: str, low: int, high: int) -> None:
        """Keep at least ``low`` instances loaded, and use up to ``high``, at least one."""
        self._allowed[runs_on] = max(1, high)
        demand = self._scheduler.demand(runs_on)
        for number in range(2, high + 1):
            key = key_of(runs_on, number)
            self._catalogue.set_entry(
                msgspec.structs.replace(self._catalogue.entry_for(runs_on), runs_on=key)
            )
            self._scheduler.add(_further(demand, key))
        self._known[runs_on] = max(self._known.get(runs_on, 1), high)
        keys = self.keys(runs_on)
        self._scheduler.set_instances(keys, self._allowed[runs_on])
        for number, key in enumerate(keys, 1):
            self._scheduler.keep_loaded(key, loaded=number <= low)

    def deployed(self, releases: Sequence[Release]) -> None:
        """Scale every model to the instances that these deployments require.

        Versions that were trained on a model run on its instances, so their deployments count too. The
        largest ``min_instances`` and ``max_instances`` of these deployments apply.
        """
        for entry in self._catalogue.entries:
            served = {entry.version, *self._catalogue.adapted(entry.runs_on)}
            asked = [release for release in releases if release.version in served]
            low = max((release.min_instances for release in asked), default=0)
            high = max((release.max_instances for release in asked), default=1)
            self.scale(entry.runs_on, low, max(high, 1))

    def demands_after_reload(self, asked: dict[str, Demand]) -> dict[str, Demand]:
        """Return the demands of all instances but the first; forget models that are no longer served.

        ``asked`` maps the models of the edited models.yaml to their demands.
        """
        further: dict[str, Demand] = {}
        entries = self._catalogue.entries_by_key
        for runs_on in list(self._known):
            if runs_on not in entries:
                del self._known[runs_on], self._allowed[runs_on]
                continue
            demand = asked.get(runs_on) or self._scheduler.demand(runs_on)
            for key in self.keys(runs_on)[1:]:
                self._catalogue.set_entry(msgspec.structs.replace(entries[runs_on], runs_on=key))
                further[key] = _further(demand, key)
        return further

    def choose(self, entry: ServedVersion) -> ServedVersion:
        """Return ``entry`` on the instance that is expected to have a free slot first.

        The scheduler may still move the prediction to another instance before it starts.
        """
        count = self._allowed.get(entry.runs_on, 1)
        if count == 1:
            return entry
        keys = self.keys(entry.runs_on)[:count]
        best = min(keys, key=self._availability_rank)
        return entry if best == entry.runs_on else msgspec.structs.replace(entry, runs_on=best)

    def _availability_rank(self, key: str) -> tuple[int, float]:
        """Return a sort key. Best first: free slots, being loaded, loadable, full, waiting for memory."""
        scheduler = self._scheduler
        slots = scheduler.demand(key).concurrency
        taken = len(scheduler.running(key)) + scheduler.queue_length(key)
        match scheduler.residency(key):
            case Residency.READY if taken < slots:
                return 0, taken
            case Residency.LOADING | Residency.WAKING if taken < slots:
                return 1, taken
            case Residency.ASLEEP | Residency.COLD if taken < slots and scheduler.fits_now(key):
                return 2, taken
            case Residency.READY | Residency.LOADING:
                return 3, taken / slots
        # The instance is queued to load, or other models must be evicted first.
        return 4, taken / slots
