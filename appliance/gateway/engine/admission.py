"""Limits on how many predictions may wait, and budgets."""

from __future__ import annotations

import time
from typing import NamedTuple

from appliance.domain.errors import Throttled, Unauthenticated
from appliance.domain.prediction import Prediction
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.gateway.engine.dependencies import Dependencies
from appliance.gateway.engine.predictions import Predictions


class RequestContext(NamedTuple):
    """The token and the trace of a prediction; a child has those of its parent."""

    token: str | None
    trace: str | None


def admit(
    dependencies: Dependencies,
    predictions: Predictions,
    entry: ServedVersion,
    owner: str,
    context: RequestContext,
    parent: str | None,
) -> RequestContext:
    """Check that a prediction may be created. The caller must add it before it awaits anything.

    ``context`` has the token and the trace of the request.

    Raises:
        Unauthenticated: the parent has ended.
        Throttled: too many predictions wait or are unfinished, or a budget of predictions is spent.
        BudgetSpent: a budget of seconds, tokens or cost is spent.
    """
    if parent is None:
        check_queues(dependencies, entry.runs_on)
    else:
        asking = check_child(dependencies, predictions, parent)
        context = RequestContext(asking.token, asking.trace)
    dependencies.budgets.check(owner, context.token, entry.name, child=parent is not None, now=time.time())
    return context


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
