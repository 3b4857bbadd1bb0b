"""The scheduler's state and events for the log and the admin routes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from appliance.gateway.catalogue.catalogue import Entry
from appliance.protocols import serializers
from appliance.scheduler import Event, EventKind, Footprint, Residency, Scheduler

_log = logging.getLogger(__name__)

#: How many of the last decisions a status shows.
SHOWN: Final = 5

_LEVELS: Final = {
    EventKind.FAILED: logging.ERROR,
    EventKind.OUT_OF_MEMORY: logging.ERROR,
    EventKind.EXCEEDS: logging.WARNING,
}


def log(event: Event) -> None:
    _log.log(_LEVELS.get(event.kind, logging.INFO), "%s", event, extra={"model": event.model or None})


def status(scheduler: Scheduler, models: Iterable[tuple[Entry, Sequence[str]]]) -> dict[str, Any]:
    """Return waiting models, ``models`` with their instances, devices, and the newest decisions."""
    return {
        "queued": scheduler.queue_length(),
        "models": [
            {
                "name": entry.runs_on,
                "kind": entry.model.kind,
                "state": scheduler.residency(entry.runs_on).value,
                "loading_for": _rounded(scheduler.loading_seconds(entry.runs_on, time.monotonic())),
                "load_seconds": _rounded(scheduler.load_seconds(entry.runs_on)),  # None: not known yet
                "pinned": scheduler.pinned(entry.runs_on),
                "queued": sum(map(scheduler.queue_length, keys)),
                "running": sum(len(scheduler.running(key)) for key in keys),
                "devices": list(scheduler.devices(entry.runs_on)),
                "instances": sum(scheduler.residency(key) is not Residency.COLD for key in keys),
                "memory": footprint(scheduler.footprints.of(entry.runs_on)),
            }
            for entry, keys in models
        ],
        "devices": [
            {
                "name": device,
                "reserved": scheduler.reserved(device),
                "free": scheduler.free(device),
                "foreign": scheduler.footprints.foreign_memory(device),
            }
            for device in scheduler.capacities
        ],
        "decisions": decisions(scheduler, SHOWN),
    }


def residency(scheduler: Scheduler) -> dict[str, Any]:
    """Return devices with the models on them, all models, models that wait for memory, and the last events.

    ``waiting`` has the model that is loaded next first. Events are newest first. Durations are in seconds.
    """
    now = time.monotonic()
    return {
        "devices": [
            {
                "name": device,
                "memory": memory,
                "free": scheduler.free(device),
                "foreign": scheduler.footprints.foreign_memory(device),
                "reserved": scheduler.reserved(device),
            }
            for device, memory in scheduler.capacities.items()
        ],
        "models": [
            {
                "name": model,
                "state": scheduler.residency(model).value,
                "devices": list(scheduler.devices(model)),
                "queued": scheduler.queue_length(model),
                "running": len(scheduler.running(model)),
                "load_seconds": _rounded(scheduler.load_seconds(model)),
                "pinned": scheduler.pinned(model),
                "priority": scheduler.demand(model).priority,
                "memory": footprint(scheduler.footprints.of(model)),
            }
            for model in scheduler.models
        ],
        "waiting": [
            {
                "position": position,
                "model": entry.model,
                "queued": entry.predictions,
                "waited": _rounded(entry.waited),
                "cleared_for_it": list(entry.claimed_devices),
            }
            for position, entry in enumerate(scheduler.load_queue(now), 1)
        ],
        "decisions": decisions(scheduler),
    }


def footprint(known: Footprint) -> dict[str, Any]:
    """Return the bytes that a model takes on each of its devices, and the source of that number.

    ``from`` is declared, estimated or measured. ``peak`` is the highest measured use, None before the first
    load. ``fits`` is whether the model could be loaded if only pinned models stayed, ``fits_on`` where.
    """
    return {
        "bytes": known.demand.memory,
        "share": known.demand.share,
        "from": known.demand.origin.value,
        "estimate": known.estimate,
        "peak": known.peak,
        "exceeds": known.exceeds,
        "out_of_memory": known.out_of_memory,
        "fits": known.fits,
        "fits_on": list(known.devices),
        "problem": known.problem,
    }


def decisions(scheduler: Scheduler, last: int | None = None) -> list[dict[str, Any]]:
    """Return the ``last`` events of the scheduler's log, or all that it keeps, newest first."""
    started = _started()
    events = scheduler.events()
    return [
        {
            "number": each.number,
            "at": serializers.timestamp(started + each.at),
            "what": each.kind.value,
            "model": each.model,
            "for": each.on_behalf_of,
            "why": each.reason,
            "devices": list(each.devices),
            "memory": each.memory,
            "seconds": _rounded(each.seconds),
            "text": str(each),
        }
        for each in reversed(events if last is None else events[-last:])
    ]


def _started() -> float:
    """Return the Unix time at which the scheduler's clock was 0.

    Both clocks are read three times, and the pair that was read fastest counts, so that an event has the same
    time in every report.
    """
    readings = []
    for _ in range(3):
        before, here, after = time.monotonic(), time.time(), time.monotonic()
        readings.append((after - before, here - after))
    return min(readings)[1]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
