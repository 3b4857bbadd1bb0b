"""What a prediction that waits shows of why it does, to whoever asks for it."""

from __future__ import annotations

from typing import Final

from appliance.domain.prediction import Prediction, Status
from appliance.gateway.engine.active import ActivePrediction
from appliance.scheduler import Residency, Scheduler

#: Where the model is -> what its predictions wait for.
_FOR: Final = {
    Residency.READY: "slot",  # as many run as may at a time
    Residency.DRAINING: "slot",
    Residency.LOADING: "load",
    Residency.WAKING: "load",
}


def shown(live: ActivePrediction, scheduler: Scheduler) -> Prediction:
    """The record as it is now; while it waits its metrics say at which place, and for what.

    ``queue_position`` counts the predictions of its model from 1, which is next. ``waits_for`` is ``slot``,
    ``load`` (the model is being loaded, or woken) or ``room`` (others hold the memory that it needs). Both
    are gone once it begins, and are never stored.
    """
    record = live.prediction
    instance = scheduler.waits_for(live.id) if record.status is Status.STARTING else None
    if instance is None:
        return record
    place, reason = scheduler.place(live.id), _FOR.get(scheduler.residency(instance), "room")
    return record.evolve(metrics={**record.metrics, "queue_position": place, "waits_for": reason})
