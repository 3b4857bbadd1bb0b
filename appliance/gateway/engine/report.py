"""Reports for people: the scheduler's decisions and their reasons."""

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


def log(happening: Event) -> None:
    """A line in the log for what was decided, or came of it."""
    _log.log(
        _LEVELS.get(happening.kind, logging.INFO), "%s", happening, extra={"model": happening.model or None}
    )


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
    """Every device with who holds it, every model, who waits for room, and the last decisions, newest first.

    ``waiting`` is in the order in which models will be loaded as things are: ``position`` 1 is next.
    Predictions of one model keep their order, so one of them has ``queued`` less one before it. Times are
    seconds.
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
                "model": standing.model,
                "queued": standing.predictions,
                "waited": _rounded(standing.waited),
                "cleared_for_it": list(standing.claimed_devices),
            }
            for position, standing in enumerate(scheduler.load_queue(now), 1)
        ],
        "decisions": decisions(scheduler),
    }


def footprint(known: Footprint) -> dict[str, Any]:
    """Return the bytes that a model takes on each of its devices, and the source of that number.

    ``from`` is declared, estimated or measured; ``peak`` the most that it is known to have taken, None before
    its first load; ``fits`` whether it could be loaded with everything unloaded that is not pinned, and
    ``fits_on`` where.
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
    """The ``last`` decisions, or all that are kept, and what came of them; newest first."""
    started = _started()
    happenings = scheduler.events()
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
        for each in reversed(happenings if last is None else happenings[-last:])
    ]


def _started() -> float:
    """When the scheduler's clock was at 0, by the clock of this machine.

    Of a few looks at both the closest together, so that a decision has the same time whenever it is told.
    """
    looks = []
    for _ in range(3):
        before, here, after = time.monotonic(), time.time(), time.monotonic()
        looks.append((after - before, here - after))
    return min(looks)[1]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
