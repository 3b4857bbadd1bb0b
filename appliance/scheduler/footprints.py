"""What models were found to take, and what follows for what they hold.

A size that models.yaml declares is never replaced; that a model takes more is said. An estimate gives way to
what was measured: to more at once, as far as there is room, and to less once a prediction has run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from appliance.domain.errors import NeverFits
from appliance.scheduler.event_log import EventKind, EventLog
from appliance.scheduler.facts import Demand, Origin, Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState

#: What is held for each byte that was measured: the next prediction may be larger than any before.
MARGIN: Final = 1.15
#: Less than this is not held for a model that was measured, in bytes.
LEAST: Final = 16 * 1024**2
#: Changes under this share of what is held are not worth telling.
_WORTH_TELLING: Final = 0.05

_PLACED: Final = frozenset({Residency.LOADING, Residency.WAKING, Residency.READY, Residency.DRAINING})


class Footprint(NamedTuple):
    """What is known of the memory that one model takes, in bytes on each of its devices."""

    demand: Demand
    estimate: int | None  # before anything was measured; None where models.yaml declares a size
    peak: int | None  # measured: the most that is expected of it; None before its first load
    exceeds: bool  # it takes more than models.yaml says
    out_of_memory: int  # how often its host was ended, because it took too much memory
    devices: tuple[str, ...]  # that could hold it, or a part of it, with all unloaded but the pinned
    fits: bool  # whether they are enough
    problem: str | None  # why it does not fit


class Footprints:
    """A part of the scheduler."""

    def __init__(self, models: Mapping[str, ModelState], ledger: Ledger, journal: EventLog) -> None:
        """All three are the scheduler's own."""
        self._models = models
        self._ledger = ledger
        self._journal = journal

    def of(self, model: str) -> Footprint:
        """What is known of the memory that the model takes."""
        entry = self._models[model]
        declared = entry.demand.origin is Origin.DECLARED
        try:
            self._ledger.check_fits(entry)
            problem = None
        except NeverFits as error:
            problem = error.detail
        return Footprint(
            demand=entry.demand,
            estimate=None if declared else entry.estimate.memory,
            peak=entry.expected_peak or None,
            exceeds=entry.exceeds,
            out_of_memory=entry.out_of_memory,
            devices=tuple(self._ledger.fitting(entry)),
            fits=problem is None,
            problem=problem,
        )

    def asked(self, entry: ModelState, demand: Demand) -> None:
        """The model asks for this from now on, and what was measured of it still counts."""
        entry.demand = entry.estimate = demand
        self._expect(entry)

    def foreign(self, device: str) -> int:
        """Bytes of the device that other programs take."""
        return self._ledger.foreign(device)

    def limit(self, model: str) -> int | None:
        """Bytes of each of its devices that its host may take; None while it is not placed."""
        entry = self._models[model]
        return self._ledger.limit(entry) if entry.devices and entry.state in _PLACED else None

    def recalled(self, model: str, peak: int) -> None:
        """So much was expected of the model when the appliance was stopped."""
        entry = self._models[model]
        entry.earlier = peak
        self._expect(entry)

    def measured(self, model: str, peak: int, now: float) -> None:
        """Its host has taken ``peak`` bytes of a device, at most, since it was started."""
        entry = self._models[model]
        if entry.state not in _PLACED:
            return
        entry.peak = max(entry.peak, peak)
        if entry.demand.origin is Origin.DECLARED:
            if entry.peak > entry.reserved and not entry.exceeds:
                entry.exceeds = True
                why = f"models.yaml says {entry.reserved}, raise its memory there"
                self._journal.add(now, EventKind.EXCEEDS, model, entry.devices, entry.peak, why=why)
            return
        self._expect(entry)
        wanted, before = entry.demand.memory or 0, entry.reserved
        if wanted == before or (wanted < before and not entry.ran_once):
            return
        holds = self._ledger.resize(entry, wanted)
        if abs(holds - before) > before * _WORTH_TELLING:
            why = f"it takes up to {entry.expected_peak:,}, and held {before:,}"
            self._journal.add(now, EventKind.RESIZED, model, entry.devices, holds, why=why)

    def out_of_memory(
        self, model: str, took: int | None, now: float, why: str = "", had: int | None = None
    ) -> bool:
        """Its host ended for want of memory, having taken ``took`` bytes; None: all that it had.

        Returns whether its next load is worth a try: it gets more than it ``had``, by default than it held,
        and more than it took.
        """
        entry = self._models[model]
        entry.out_of_memory += 1
        before = entry.demand.memory
        entry.peak = max(entry.peak, took or 0, 0 if entry.demand.origin is Origin.DECLARED else before or 0)
        entry.ran_once = True  # whatever it was: it is a reason to expect as much
        self._expect(entry)
        self._journal.add(now, EventKind.STARVED, model, entry.devices, took or entry.reserved, why=why)
        return (entry.demand.memory or 0) > max(entry.reserved if had is None else had, took or 0)

    def unloaded(self, entry: ModelState) -> None:
        """It is not loaded any more: what it took this time counts for the next."""
        entry.unloaded()
        self._expect(entry)

    def _expect(self, entry: ModelState) -> None:
        """Ask for what was measured and a margin, no more than there ever is."""
        peak = entry.expected_peak
        if entry.demand.origin is Origin.DECLARED or peak == 0:
            return
        wanted = max(LEAST, min(int(peak * MARGIN), self._ledger.most(entry)))
        less = wanted < (entry.demand.memory or 0)
        if less and not entry.ran_once and not entry.earlier:
            return  # its first prediction may take more than loading it
        entry.demand = msgspec.structs.replace(entry.demand, memory=wanted, origin=Origin.MEASURED)
