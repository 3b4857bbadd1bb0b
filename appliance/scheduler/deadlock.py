"""Finds predictions that can finish, and children that could never start because of a deadlock.

A prediction that waits for a child prediction keeps its slot and the memory of its model. If the child needs
that slot or memory, parent and child wait for each other for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    active = [(name, model) for name, model in models.items() if model.queue or model.running]
    loaded = [model for model in models.values() if model.devices]
    completable: set[str] = set()
    while True:
        found: set[str] = set()
        free = _eventually_free(loaded, capacities, completable)
        for name, model in active:
            found |= {
                id for id in model.running if not children.get(id) or not completable.isdisjoint(children[id])
            }
            if name != without and model.queue and _can_start(model, free, capacities, completable):
                found.update(model.queue)
        if found <= completable:
            return completable
        completable |= found


def _can_start(
    model: ModelState, free: Mapping[str, int], capacities: Sequence[Capacity], completable: set[str]
) -> bool:
    """Return whether the model can run its queue once the completable predictions have finished.

    ``free`` are the bytes by device that are free then, see ``_eventually_free``.
    """
    if model.state in _PLACED:
        return len(model.running) < model.demand.concurrency or not completable.isdisjoint(model.running)
    if model.state is Residency.DRAINING and not model.running <= completable:
        return False
    own = model.reserved if _keeps_memory(model, completable) else 0  # it may use its own memory
    large_enough, nodes = Counter[str](), 0
    for each in _eligible(model, capacities):
        available = free[each.device] + (own if each.device in model.devices else 0)
        if model.demand.bytes_on(each) <= available:
            large_enough[each.node] += 1
            nodes += large_enough[each.node] == model.demand.devices
            if nodes == model.demand.machines:
                return True
    return False


def _keeps_memory(model: ModelState, completable: set[str]) -> bool:
    """Return whether the model still holds its memory once the completable predictions have finished."""
    if model.node_removed:  # the memory on its other nodes is freed too
        return False
    return model.pinned or not model.running <= completable


def _eventually_free(
    models: Collection[ModelState], capacities: Sequence[Capacity], completable: set[str]
) -> dict[str, int]:
    """Return the bytes by device that are free once the completable predictions have finished."""
    free = {capacity.device: capacity.memory for capacity in capacities}
    for each in models:
        if _keeps_memory(each, completable):
            for device in each.devices:
                if device in free:  # not of a removed node
                    free[device] -= each.reserved
    return free


def _eligible(model: ModelState, capacities: Sequence[Capacity]) -> Iterator[Capacity]:
    for capacity in capacities:
        if model.demand.may_use(capacity) and capacity.is_main_memory is model.demand.on_cpu:
            yield capacity


def explain_deadlock(
    model: ModelState, models: Collection[ModelState], capacities: Sequence[Capacity], completable: set[str]
) -> str:
    name, demand = model.name, model.demand
    if model.state in _PLACED:
        return (
            f"this child prediction could never start: model {name} has concurrency {demand.concurrency}, "
            "and its running predictions wait for child predictions: raise its concurrency in models.yaml"
        )
    devices = list(_eligible(model, capacities))
    if not devices:
        return f"this child prediction could never start: no device of the cluster may hold model {name}"
    nodes = Counter(each.node for each in devices)
    if sum(count >= demand.devices for count in nodes.values()) < demand.machines > 1:
        return (
            f"this child prediction could never start: model {name} needs {demand.nodes_and_devices}, "
            "and the cluster has too few such machines: add a node"
        )
    waiting = sorted(each.name for each in models if each.devices and not each.running <= completable)
    others = [each for each in models if each is not model]
    free = _eventually_free(others, capacities, completable)
    sizes = ", ".join(f"{readable_bytes(free[each.device])} on {each.device}" for each in devices)
    needed = max(demand.bytes_on(each) for each in devices)
    return (
        f"this child prediction could never start: model {name} needs {readable_bytes(needed)}"
        f"{demand.on_each}, but {', '.join(waiting)}, whose predictions wait for their children, "
        f"leave only {sizes}: lower the memory of these models in models.yaml"
    )
