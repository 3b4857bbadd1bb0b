"""Finds the cheapest devices for a model, and the models to evict from these devices.

All devices of a plan are on one node, or on as many nodes as ``Demand.machines`` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Final, NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.facts import Residency, SleepLevel
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.locality import Locality
from appliance.scheduler.model import ModelState

_LEAVING = frozenset({Residency.DRAINING, Residency.FALLING_ASLEEP, Residency.UNLOADING})
#: Nodes that are compared for a model on several nodes: those with the cheapest plans.
_MAX_NODES: Final = 16


class Plan(NamedTuple):
    """Devices for one model, and the models to evict from these devices."""

    devices: tuple[str, ...]
    victims: tuple[ModelState, ...]
    cost: float  # seconds that predictions wait because of the plan, without the model's own load
    sleep: bool  # whether victims may fall asleep; otherwise all have to be unloaded


class _Option(NamedTuple):
    """A plan for one device. Sorting by the first five fields puts the best option first."""

    cost: float  # seconds that predictions wait because of the plan
    evictions: int
    must_wait: bool
    negative_free: int  # bytes that stay free, negated
    device: str
    victims: dict[ModelState, float]  # with the cost of each eviction
    wait: float  # seconds until the memory is free
    sleep: bool


class _NodePlan(NamedTuple):
    """The best options of one node. Sorting by the first five fields puts the best node first."""

    cost: float  # seconds that predictions wait because of the plan and of the copy of the weights
    instances: int  # other instances of the model on the node: one node may be lost, so they are spread
    evictions: int
    must_wait: bool
    negative_free: int
    options: list[_Option]
    node: str


def plan(
    model: ModelState,
    ledger: Ledger,
    locality: Locality,
    reserved_for_others: Mapping[str, int],
    now: float,
    *,
    spare_busy: bool,
    completable: set[str] | None,
    among: Iterable[str] | None,
) -> Plan | None:
    """Return the best plan to load ``model``; None if no plan is possible now.

    With ``spare_busy``, the plan evicts only idle models whose minimum residency is over, and only if the
    eviction costs less than its benefit. Otherwise it may evict every model that is not pinned, after the
    victim's running predictions have finished.

    Args:
        model: The model to load.
        ledger: Reservations of all devices.
        locality: Which nodes have the weights and other instances of the model.
        reserved_for_others: Bytes by device that are kept for more urgent models.
        now: Seconds on the scheduler's clock.
        spare_busy: Whether to spare busy models.
        completable: The predictions that can finish before this model is loaded; None means all.
        among: The devices to choose from; None means all eligible devices. Devices of nodes that are not
            schedulable are left out.
    """
    by_node: dict[str, list[_Option]] = {}
    if among is None:
        among = ledger.eligible_devices(model.demand)
    else:
        among = [device for device in among if ledger.is_schedulable_for(device, model.demand)]
    if model.avoided and model.state is not Residency.ASLEEP:
        among = ledger.not_on(model.avoided_nodes(now), among)
    for device in among:
        option = _plan_for_device(
            model,
            ledger,
            device,
            reserved_for_others[device],
            now,
            spare_busy=spare_busy,
            completable=completable,
        )
        if option is not None:
            by_node.setdefault(ledger.capacities[device].node, []).append(option)
    plans = [
        _node_plan(model, node, options, locality)
        for node, options in by_node.items()
        if len(options) >= model.demand.devices
    ]
    if len(plans) < model.demand.machines:
        return None
    if model.demand.machines > 1:
        return _plan_on_several_nodes(model, plans, locality, now, spare_busy=spare_busy)
    best = min(plans, key=_order)
    return _plan_on([best], best.cost)


def _order(plan: _NodePlan) -> tuple[object, ...]:
    return plan[:5], plan.options[0].device


def _plan_on(nodes: list[_NodePlan], cost: float) -> Plan:
    """Return the plan that uses all of ``nodes``."""
    devices: list[str] = []
    victims: dict[str, ModelState] = {}
    sleep = True
    for node in nodes:
        devices += sorted([option.device for option in node.options])
        for option in node.options:
            sleep = sleep and option.sleep
            for victim in option.victims:
                victims[victim.name] = victim
    return Plan(tuple(devices), tuple(victims[name] for name in sorted(victims)), cost, sleep)


class _Part(NamedTuple):
    """The plan of one node for a part of a model."""

    node: _NodePlan
    victims: dict[ModelState, float]  # with the cost of each eviction
    wait: float  # seconds until the memory is free
    copying: float  # seconds


class _Combination(NamedTuple):
    """The plans of several nodes. Sorting by all fields puts the best combination first."""

    cost: float  # seconds that predictions wait
    instances: int
    evictions: int
    must_wait: bool
    negative_free: int
    eviction_cost: float  # part of the cost
    numbers: tuple[int, ...]  # of the nodes, in ascending order


def _plan_on_several_nodes(
    model: ModelState, plans: list[_NodePlan], locality: Locality, now: float, *, spare_busy: bool
) -> Plan | None:
    """Combine the plans of ``Demand.machines`` nodes into the cheapest plan for the model.

    Each combination begins with one node. The node that costs least in addition is added until there are
    enough. A model to evict may be on several of the nodes, so a node that is cheap together with the first
    may be expensive alone.
    """
    parts = [_part(model, plan, locality) for plan in sorted(plans, key=_order)[:_MAX_NODES]]
    benefit = policy.eviction_benefit(model, now) if spare_busy else inf
    found: list[_Combination] = []
    for first in range(len(parts)):
        numbers: tuple[int, ...] = (first,)
        while len(numbers) < model.demand.machines:
            others = (number for number in range(len(parts)) if number not in numbers)
            numbers = min(_combination(model, parts, (*numbers, other)) for other in others).numbers
        combination = _combination(model, parts, numbers)
        if combination.eviction_cost <= benefit:
            found.append(combination)
    if not found:
        return None
    best = min(found)
    return _plan_on([parts[number].node for number in best.numbers], best.cost)


def _part(model: ModelState, node: _NodePlan, locality: Locality) -> _Part:
    victims: dict[ModelState, float] = {}
    for option in node.options:
        victims.update(option.victims)
    wait = sum(option.wait for option in node.options)
    return _Part(node, victims, wait, locality.copy_seconds(model.name, node.node))


def _combination(model: ModelState, parts: list[_Part], numbers: tuple[int, ...]) -> _Combination:
    """Return the cost of a model with these parts.

    The eviction of a model counts once. The parts load at the same time, so only the longest wait for memory
    and the longest copy of weights count.
    """
    chosen = [parts[number] for number in numbers]
    victims: dict[ModelState, float] = {}
    for part in chosen:
        victims.update(part.victims)
    eviction_cost = sum(victims.values())
    waiting = max(part.wait for part in chosen) + max(part.copying for part in chosen)
    return _Combination(
        eviction_cost + waiting * policy.predictions_weight(model),
        sum(part.node.instances for part in chosen),
        len(victims),
        any(part.node.must_wait for part in chosen),
        sum(part.node.negative_free for part in chosen),
        eviction_cost,
        tuple(sorted(numbers)),
    )


def _node_plan(model: ModelState, node: str, options: list[_Option], locality: Locality) -> _NodePlan:
    """Return the plan with the best of these options, which are on one node."""
    count = model.demand.devices
    chosen = sorted(options, key=lambda option: option[:5])[:count] if len(options) > 1 else options
    copying = locality.copy_seconds(model.name, node)
    return _NodePlan(
        sum(option.cost for option in chosen) + copying * policy.predictions_weight(model),
        locality.instances_on(model.name, node),
        sum(option.evictions for option in chosen),
        any(option.must_wait for option in chosen),
        sum(option.negative_free for option in chosen),
        chosen,
        node,
    )


def _plan_for_device(
    model: ModelState,
    ledger: Ledger,
    device: str,
    reserved_for_others: int,
    now: float,
    *,
    spare_busy: bool,
    completable: set[str] | None,
) -> _Option | None:
    needed = model.demand.bytes_on(ledger.capacities[device])
    if needed > ledger.capacities[device].memory:
        return None
    others = [each for each in ledger.models_on(device) if each is not model]
    # A sleeping model can use the memory that is still reserved for it on this device.
    available = ledger.free(device) + ledger.reserved_by(model, device) - reserved_for_others
    missing = needed - available
    # A model with a part on a removed node has ended; the engine will call ``lost`` for it.
    if ledger.removed_nodes:
        missing -= sum(ledger.reserved_by(each, device) for each in others if each.node_removed)
        others = [each for each in others if not each.node_removed]

    # Use memory that becomes free without an eviction first, the soonest free before the rest.
    loading = ledger.loading(device)
    wait = 0.0
    if loading is not None:
        wait = max(1.0, policy.expected_time_to_ready(loading) - (now - loading.state_since))
    leaving = sorted(
        (policy.seconds_until_free(each, now), _freed_memory(each, device, ledger))
        for each in others
        if each.state in _LEAVING and (each.state is not Residency.DRAINING or _finishes(each, completable))
    )
    for seconds, memory in leaving:
        if missing > 0:
            missing -= memory
            wait = max(wait, seconds)

    # Evictions free the missing rest. Victims sleep if that frees enough; otherwise they are unloaded.
    candidates = [
        each
        for each in others
        if _evictable(each, now, spare_busy=spare_busy) and _finishes(each, completable)
    ]
    levels = _sleep_levels(candidates, ledger, now, model)
    victims = _cheapest_victims(levels, missing, device, ledger, now)
    sleep = victims is not None
    if victims is None:  # sleeping models may keep too much memory
        levels = dict.fromkeys(levels)
        victims = _cheapest_victims(levels, missing, device, ledger, now)
    if victims is None:
        return None
    wait = max([wait, *(policy.seconds_until_free(victim, now) for victim in victims)])
    costs: dict[ModelState, float] = {}
    cost = wait * policy.predictions_weight(model)
    if victims:
        costs = {victim: policy.eviction_cost(victim, now, levels[victim]) for victim in victims}
        eviction_cost = sum(costs.values())
        if spare_busy and eviction_cost > policy.eviction_benefit(model, now):
            return None
        cost += eviction_cost
    return _Option(cost, len(victims), wait > 0, needed - available, device, costs, wait, sleep)


def _cheapest_victims(
    levels: Mapping[ModelState, SleepLevel | None], missing: int, device: str, ledger: Ledger, now: float
) -> tuple[ModelState, ...] | None:
    """Return the cheapest models to evict for ``missing`` bytes; None if evicting all frees too little.

    ``levels`` maps each candidate to its sleep level; None means that it is unloaded.
    """
    if missing <= 0:
        return ()
    price = {
        each: policy.eviction_cost(each, now, level) + policy.seconds_until_free(each, now)
        for each, level in levels.items()
    }
    freed = {each: _freed_memory(each, device, ledger, level) for each, level in levels.items()}
    # By cost per freed byte, then least recently used first.
    ordered = sorted(
        (each for each in levels if freed[each] > 0),
        key=lambda each: (price[each] / freed[each], each.last_used, each.name),
    )
    chosen: list[ModelState] = []
    for each in ordered:
        if missing <= 0:
            break
        chosen.append(each)
        missing -= freed[each]
    if missing > 0:
        return None
    for each in sorted(chosen, key=lambda each: -price[each]):  # spare victims that turn out unnecessary
        if missing + freed[each] <= 0:
            chosen.remove(each)
            missing += freed[each]
    return tuple(chosen)


def _sleep_levels(
    candidates: list[ModelState], ledger: Ledger, now: float, waiter: ModelState
) -> dict[ModelState, SleepLevel | None]:
    return {
        each: policy.cheapest_sleep_level(each, now, ledger.main_memory_for(each), waiter)
        if each.can_sleep and each.state is not Residency.ASLEEP
        else None
        for each in candidates
    }


def _freed_memory(model: ModelState, device: str, ledger: Ledger, level: SleepLevel | None = None) -> int:
    """Return the bytes of the device that the model frees when it falls asleep or is unloaded."""
    reserved, footprint = ledger.reserved_by(model, device), model.demand.sleep_footprint
    if device not in model.devices:  # main memory, which holds weights of sleeping models until their unload
        return reserved if model.state in {Residency.ASLEEP, Residency.UNLOADING} else 0
    if model.state is Residency.FALLING_ASLEEP:
        level = model.sleep_level
    return reserved if level is None or footprint is None else max(0, reserved - footprint.residue)


def _evictable(model: ModelState, now: float, *, spare_busy: bool) -> bool:
    if model.pinned:
        return False
    if model.state is Residency.ASLEEP:
        return not spare_busy or model.idle
    if spare_busy:
        return model.idle and policy.residency_elapsed(model, now)
    return model.state in {Residency.READY, Residency.LOADING, Residency.WAKING}


def _finishes(model: ModelState, completable: set[str] | None) -> bool:
    return completable is None or model.running <= completable
