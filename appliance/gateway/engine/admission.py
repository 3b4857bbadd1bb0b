"""Limits on how many predictions may wait."""

from __future__ import annotations

from appliance.domain.errors import Throttled, Unauthenticated
from appliance.domain.prediction import Prediction
from appliance.gateway.engine.dependencies import Dependencies
from appliance.gateway.engine.predictions import Predictions


def check_queues(dependencies: Dependencies, model: str) -> None:
    """Raise ``Throttled`` if the queue of the model, or of the appliance, is full."""
    limits, scheduler = dependencies.limits, dependencies.scheduler
    for depth, limit, subject in (
        (scheduler.queue_length(model), limits.queue_per_model, f"model {model}"),
        (scheduler.queue_length(), limits.queue, "the appliance"),
    ):
        if depth >= limit:
            raise Throttled(
                f"Request was throttled. {depth} predictions already wait for {subject}.", retry_after=5
            )


def check_child(dependencies: Dependencies, predictions: Predictions, parent: str) -> Prediction:
    """Return the record of the running prediction ``parent``, which creates a child prediction.

    Children are accepted although queues are full, because a running parent waits for them. A parent may have
    ``limits.queue_per_model`` unfinished children.

    Raises:
        Unauthenticated: the parent has ended.
        Throttled: the parent has too many unfinished children.
    """
    active = predictions.active.get(parent)
    if active is None or active.ending:
        raise Unauthenticated(token_given=True)
    unfinished = len(predictions.children_of(parent))
    if unfinished >= dependencies.limits.queue_per_model:
        raise Throttled(
            f"Request was throttled. {unfinished} children of prediction {parent} are not finished.",
            retry_after=5,
        )
    return active.prediction
