"""Measured memory of models, and the reservations that follow from it.

A size declared in models.yaml is never replaced; if the model uses more, an event is logged. An estimate is
replaced by the measured peak plus a margin. It is raised at once, as far as memory is free, and lowered only
after a prediction has run.
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

#: Bytes reserved for each measured byte, because a later prediction may need more than all before.
MARGIN: Final = 1.15
#: Smallest reservation of a measured model, in bytes.
MINIMUM: Final = 16 * 1024**2
#: A change by less than this fraction of the reservation is not logged.
_LOGGED_CHANGE: Final = 0.05

_PLACED: Final = frozenset({Residency.LOADING, Residency.WAKING, Residency.READY, Residency.DRAINING})


class Footprint(NamedTuple):
    """Memory that one model needs. Sizes are bytes on each of its devices."""

    demand: Demand
    estimate: int | None  # computed before the first load; None if models.yaml declares a size
    peak: int | None  # expected peak, from measurements; None before its first load
    exceeds: bool  # whether the model uses more than models.yaml declares
    out_of_memory: int  # how often its worker process ran out of memory
    devices: tuple[str, ...]  # that are large enough for the model if only pinned models stay loaded
    fits: bool  # whether `devices` are as many as the model needs
    problem: str | None  # error message if the model does not fit


class Footprints:
    """Measured memory of all models of a scheduler."""

    def __init__(self, models: Mapping[str, ModelState], ledger: Ledger, event_log: EventLog) -> None:
        self._models = models
        self._ledger = ledger
        self._event_log = event_log

    def of(self, model: str) -> Footprint:
        """Return the memory that a model needs, and whether the machine is large enough for the model."""
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
        """Return the bytes of each device that the worker process may use; None for an unloaded model."""
        entry = self._models[model]
        return self._ledger.limit(entry) if entry.devices and entry.state in _PLACED else None

    def foreign_memory(self, device: str) -> int:
        return self._ledger.foreign(device)

    def set_demand(self, entry: ModelState, demand: Demand) -> None:
        entry.demand = entry.estimated_demand = demand
        self._apply_peak(entry)

    def restore_peak(self, model: str, peak: int) -> None:
        """Set the peak bytes that were measured before the appliance was restarted."""
        entry = self._models[model]
        entry.earlier_peak = peak
        self._apply_peak(entry)

    def record_peak(self, model: str, peak: int, now: float) -> None:
        """Record the peak bytes of one device that the worker process has used since its start."""
        entry = self._models[model]
        if entry.state not in _PLACED:
            return
        entry.peak = max(entry.peak, peak)
        if entry.demand.origin is Origin.DECLARED:
            if entry.peak > entry.reserved and not entry.exceeds:
                entry.exceeds = True
                reason = f"models.yaml declares {readable_bytes(entry.reserved)}: raise the declared memory"
                self._event_log.add(now, EventKind.EXCEEDS, model, entry.devices, entry.peak, reason=reason)
            return
        self._apply_peak(entry)
        wanted, before = entry.demand.memory or 0, entry.reserved
        if wanted == before or (wanted < before and not entry.ran_once):
            return
        reserved = self._ledger.resize(entry, wanted)
        if abs(reserved - before) > before * _LOGGED_CHANGE:
            peak_text, before_text = readable_bytes(entry.expected_peak), readable_bytes(before)
            reason = f"its measured peak is {peak_text}, and {before_text} were reserved before"
            self._event_log.add(now, EventKind.RESIZED, model, entry.devices, reserved, reason=reason)

    def record_out_of_memory(
        self, model: str, used: int | None, now: float, reason: str, available: int | None
    ) -> bool:
        """Record that the worker process ran out of memory, and reserve more for the next load.

        ``used`` are the bytes that the process used, ``available`` the bytes that it could use; None stands
        for the reserved bytes. Returns whether the next load gets more than both, so that it is worth a try.
        """
        entry = self._models[model]
        entry.out_of_memory += 1
        before = entry.demand.memory
        entry.peak = max(entry.peak, used or 0, 0 if entry.demand.origin is Origin.DECLARED else before or 0)
        entry.ran_once = True  # running out of memory is as good a measurement as a prediction
        self._apply_peak(entry)
        memory = used or entry.reserved
        self._event_log.add(now, EventKind.OUT_OF_MEMORY, model, entry.devices, memory, reason=reason)
        return (entry.demand.memory or 0) > max(entry.reserved if available is None else available, used or 0)

    def end_measurement(self, entry: ModelState) -> None:
        entry.end_measurement()
        self._apply_peak(entry)

    def _apply_peak(self, entry: ModelState) -> None:
        """Set the demand to the expected peak plus a margin, unless models.yaml declares the size.

        The demand never exceeds what the devices can give. In a cluster it is not below the peak: the node
        with enough memory may have been lost, and the model would run out of memory on the others.
        """
        peak = entry.expected_peak
        if entry.demand.origin is Origin.DECLARED or peak == 0:
            return
        with_margin = int(peak * MARGIN)
        available = self._ledger.most_available(entry, enough=with_margin)
        least = max(MINIMUM, peak) if self._ledger.is_cluster else MINIMUM
        wanted = max(least, min(with_margin, available))
        less = wanted < (entry.demand.memory or 0)
        if less and not entry.ran_once and not entry.earlier_peak:
            return  # the first prediction may take more memory than loading did
        entry.demand = msgspec.structs.replace(entry.demand, memory=wanted, origin=Origin.MEASURED)
