"""Queue position and wait reason of a queued prediction."""

from __future__ import annotations

from typing import Final

from appliance.domain.prediction import Prediction, Status
from appliance.gateway.engine.active import ActivePrediction
from appliance.scheduler import Residency, Scheduler

#: State of a model -> `waits_for` of its predictions.
_FOR: Final = {
    Residency.READY: "slot",  # the model runs as many predictions as it may
    Residency.DRAINING: "slot",
    Residency.LOADING: "load",
    Residency.WAKING: "load",
}


def with_queue_info(active: ActivePrediction, scheduler: Scheduler) -> Prediction:
    """Return the current record; add ``queue_position`` and ``waits_for`` if the prediction is queued.

    Both are metrics that are never stored. ``queue_position`` is 1 for the next prediction of the model.
    ``waits_for`` is ``slot`` (the model runs as many predictions as it may), ``load`` (the model is being
    loaded or woken) or ``room`` (other models hold the memory that the model needs).
    """
    record = active.prediction
    instance = scheduler.queued_for(active.id) if record.status is Status.STARTING else None
    if instance is None:
        return record
    position, reason = scheduler.queue_position(active.id), _FOR.get(scheduler.residency(instance), "room")
    return record.evolve(metrics={**record.metrics, "queue_position": position, "waits_for": reason})
