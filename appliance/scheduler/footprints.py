"""Measured memory of models, and the reservations that follow from it.

A size that models.yaml declares is never replaced; if the model takes more, the event log says so. An
estimate is replaced by the measured peak plus a margin: upwards at once, as far as memory is free, and
downwards only after a prediction has run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from appliance.domain.errors import ModelTooLarge
from appliance.domain.units import readable_bytes
from appliance.scheduler.event_log import EventKind, EventLog
from appliance.scheduler.facts import Demand, Origin, Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState

#: Bytes that are reserved for each measured byte: the next prediction may be larger than any before.
MARGIN: Final = 1.15
#: The least that is reserved for a measured model, in bytes.
MINIMUM: Final = 16 * 1024**2
#: A change of less than this share of the reservation is not logged.
_LOGGED_CHANGE: Final = 0.05

_PLACED: Final = frozenset({Residency.LOADING, Residency.WAKING, Residency.READY, Residency.DRAINING})


class Footprint(NamedTuple):
    """Memory that one model takes, in bytes on each of its devices."""

    demand: Demand
    estimate: int | None  # before anything was measured; None if models.yaml declares a size
    peak: int | None  # the highest use that is expected of it, as measured; None before its first load
    exceeds: bool  # it takes more than models.yaml declares
    out_of_memory: int  # how often its worker process was ended because it took too much memory
    devices: tuple[str, ...]  # that could hold the model, or its part, with all but pinned models unloaded
    fits: bool  # whether these are enough devices
    problem: str | None  # why the model does not fit


class Footprints:
    """Measured memory of all models of a scheduler."""

    def __init__(self, models: Mapping[str, ModelState], ledger: Ledger, event_log: EventLog) -> None:
        self._models = models
        self._ledger = ledger
        self._event_log = event_log

    def of(self, model: str) -> Footprint:
        """Return the memory that a model takes, and whether the machine could hold the model."""
        entry = self._models[model]
        declared = entry.demand.origin is Origin.DECLARED
        try:
            self._ledger.check_fits(entry)
            problem = None
        except ModelTooLarge as error:
            problem = error.detail
        return Footprint(
            demand=entry.demand,
            estimate=None if declared else entry.estimated_demand.memory,
            peak=entry.expected_peak or None,
            exceeds=entry.exceeds,
            out_of_memory=entry.out_of_memory,
            devices=tuple(self._ledger.devices_large_enough(entry)),
            fits=problem is None,
            problem=problem,
        )

    def limit(self, model: str) -> int | None:
        """Return the bytes of each device that the worker process may use; None while it has no device."""
        entry = self._models[model]
        return self._ledger.limit(entry) if entry.devices and entry.state in _PLACED else None

    def foreign_memory(self, device: str) -> int:
        return self._ledger.foreign(device)

    def set_demand(self, entry: ModelState, demand: Demand) -> None:
        """Replace the demand of a model whose measured peak is still valid."""
        entry.demand = entry.estimated_demand = demand
        self._apply_peak(entry)

    def restore_peak(self, model: str, peak: int) -> None:
        """Set the peak, in bytes, that was measured before the appliance was restarted."""
        entry = self._models[model]
        entry.earlier_peak = peak
        self._apply_peak(entry)

    def record_peak(self, model: str, peak: int, now: float) -> None:
        """Record the peak bytes that the worker process has used of one device since its start."""
        entry = self._models[model]
        if entry.state not in _PLACED:
            return
        entry.peak = max(entry.peak, peak)
        if entry.demand.origin is Origin.DECLARED:
            if entry.peak > entry.reserved and not entry.exceeds:
                entry.exceeds = True
                reason = f"models.yaml declares {readable_bytes(entry.reserved)}: raise its memory there"
                self._event_log.add(now, EventKind.EXCEEDS, model, entry.devices, entry.peak, reason=reason)
            return
        self._apply_peak(entry)
        wanted, before = entry.demand.memory or 0, entry.reserved
        if wanted == before or (wanted < before and not entry.ran_once):
            return
        reserved = self._ledger.resize(entry, wanted)
        if abs(reserved - before) > before * _LOGGED_CHANGE:
            peak_text, before_text = readable_bytes(entry.expected_peak), readable_bytes(before)
            reason = f"it takes up to {peak_text}, and {before_text} were reserved"
            self._event_log.add(now, EventKind.RESIZED, model, entry.devices, reserved, reason=reason)

    def record_out_of_memory(
        self, model: str, took: int | None, now: float, reason: str, had: int | None
    ) -> bool:
        """Record that the worker process ran out of memory, and reserve more for the next load.

        ``took`` is what it used and ``had`` what it could use, in bytes; None is what it had reserved.
        Returns whether the next load gets more than both, so that it is worth a try.
        """
        entry = self._models[model]
        entry.out_of_memory += 1
        before = entry.demand.memory
        entry.peak = max(entry.peak, took or 0, 0 if entry.demand.origin is Origin.DECLARED else before or 0)
        entry.ran_once = True  # running out of memory is as good a measurement as a prediction
        self._apply_peak(entry)
        memory = took or entry.reserved
        self._event_log.add(now, EventKind.OUT_OF_MEMORY, model, entry.devices, memory, reason=reason)
        return (entry.demand.memory or 0) > max(entry.reserved if had is None else had, took or 0)

    def end_measurement(self, entry: ModelState) -> None:
        """Adjust the demand of a model that has just been unloaded by what it took this time."""
        entry.end_measurement()
        self._apply_peak(entry)

    def _apply_peak(self, entry: ModelState) -> None:
        """Set the demand to the expected peak and a margin, within what the devices could ever give."""
        peak = entry.expected_peak
        if entry.demand.origin is Origin.DECLARED or peak == 0:
            return
        wanted = max(MINIMUM, min(int(peak * MARGIN), self._ledger.most_available(entry)))
        less = wanted < (entry.demand.memory or 0)
        if less and not entry.ran_once and not entry.earlier_peak:
            return  # the first prediction may take more memory than loading did
        entry.demand = msgspec.structs.replace(entry.demand, memory=wanted, origin=Origin.MEASURED)
