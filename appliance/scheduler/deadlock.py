"""Finds predictions that can finish, and children that could never start because of a deadlock.

A prediction that waits for a child prediction keeps its slot and the memory of its model. If the child needs
that slot or memory, parent and child wait for each other for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from appliance.domain.units import readable_bytes
from appliance.scheduler.facts import Capacity, Residency
from appliance.scheduler.model import ModelState

#: States in which a model holds its memory and needs only a free slot to start a prediction.
_PLACED: Final = frozenset({Residency.READY, Residency.LOADING, Residency.WAKING})


def completable_predictions(
    models: Mapping[str, ModelState],
    children: Mapping[str, set[str]],
    capacities: Sequence[Capacity],
    *,
    without: str | None = None,
) -> set[str]:
    """Return the ids of all running and waiting predictions that can finish.

    The search begins with running predictions that wait for no child. It then adds the predictions that can
    start or continue once the ones found so far have finished, until it finds no more.

    ``children`` maps each parent to its unfinished children; a parent is assumed to wait for only one of
    them. The queue of the model ``without`` is assumed never to start.
    """
    completable: set[str] = set()
    while True:
        found: set[str] = set()
        for name, model in models.items():
            found |= {
                id for id in model.running if not children.get(id) or not completable.isdisjoint(children[id])
            }
            if name != without and _can_start(model, models.values(), capacities, completable):
                found.update(model.queue)
        if found <= completable:
            return completable
        completable |= found


def _can_start(
    model: ModelState, models: Collection[ModelState], capacities: Sequence[Capacity], completable: set[str]
) -> bool:
    """Return whether the model can run its queue once the completable predictions have finished."""
    if model.state in _PLACED:
        return len(model.running) < model.demand.concurrency or not completable.isdisjoint(model.running)
    if model.state is Residency.DRAINING and not model.running <= completable:
        return False
    free = _eventually_free(model, models, capacities, completable)
    large_enough = Counter(
        each.node for each in _eligible(model, capacities) if model.demand.bytes_on(each) <= free[each.device]
    )
    return max(large_enough.values(), default=0) >= model.demand.devices


def _eventually_free(
    model: ModelState, models: Collection[ModelState], capacities: Sequence[Capacity], completable: set[str]
) -> dict[str, int]:
    """Return the bytes by device that ``model`` can get once the completable predictions have finished."""
    staying = [
        each for each in models if each is not model and (each.pinned or not each.running <= completable)
    ]
    return {
        capacity.device: capacity.memory
        - sum(each.reserved for each in staying if capacity.device in each.devices)
        for capacity in capacities
    }


def _eligible(model: ModelState, capacities: Sequence[Capacity]) -> list[Capacity]:
    nodes = model.demand.nodes
    return [
        capacity
        for capacity in capacities
        if capacity.is_main_memory is model.demand.on_cpu and (nodes is None or capacity.node in nodes)
    ]


def explain_deadlock(
    model: ModelState, models: Collection[ModelState], capacities: Sequence[Capacity], completable: set[str]
) -> str:
    name, demand = model.name, model.demand
    if model.state in _PLACED:
        return (
            f"this child prediction could never start: model {name} has concurrency {demand.concurrency}, "
            "and its running predictions wait for child predictions: raise its concurrency in models.yaml"
        )
    devices = _eligible(model, capacities)
    if not devices:
        return f"this child prediction could never start: no device of the cluster may hold model {name}"
    waiting = sorted(each.name for each in models if each.devices and not each.running <= completable)
    free = _eventually_free(model, models, capacities, completable)
    sizes = ", ".join(f"{readable_bytes(free[each.device])} on {each.device}" for each in devices)
    needed = max(demand.bytes_on(each) for each in devices)
    return (
        f"this child prediction could never start: model {name} needs {readable_bytes(needed)}"
        f"{demand.on_each}, but {', '.join(waiting)}, whose predictions wait for their children, "
        f"leave only {sizes}: lower the memory of these models in models.yaml"
    )
