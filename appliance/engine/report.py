"""What the scheduler decided and why, for people."""

from __future__ import annotations

import time
from typing import Any

from appliance import wire
from appliance.scheduler import Scheduler


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
                "reserved": scheduler.reserved(device),
            }
            for device, memory in scheduler.capacities.items()
        ],
        "models": [
            {
                "name": model,
                "state": scheduler.residency(model).value,
                "devices": list(scheduler.devices(model)),
                "queued": scheduler.depth(model),
                "running": len(scheduler.running(model)),
                "load_seconds": _rounded(scheduler.load_seconds(model)),
                "pinned": scheduler.pinned(model),
                "priority": scheduler.demand(model).priority,
            }
            for model in scheduler.models
        ],
        "waiting": [
            {
                "position": position,
                "model": standing.model,
                "queued": standing.predictions,
                "waited": _rounded(standing.waited),
                "cleared_for_it": list(standing.claim),
            }
            for position, standing in enumerate(scheduler.standings(now), 1)
        ],
        "decisions": decisions(scheduler, now),
    }


def decisions(scheduler: Scheduler, now: float, last: int | None = None) -> list[dict[str, Any]]:
    """The ``last`` decisions, or all that are kept, and what came of them; newest first."""
    started = time.time() - now
    happenings = scheduler.happenings()
    return [
        {
            "number": each.number,
            "at": wire.timestamp(started + each.at),
            "what": each.what.value,
            "model": each.model,
            "for": each.on_behalf_of,
            "why": each.why,
            "devices": list(each.devices),
            "memory": each.memory,
            "seconds": _rounded(each.seconds),
            "text": str(each),
        }
        for each in reversed(happenings if last is None else happenings[-last:])
    ]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
