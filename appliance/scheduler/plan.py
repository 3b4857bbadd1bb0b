"""Finds the devices for a model, and the models to evict from them, at the least cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.facts import Residency, SleepLevel
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState

_LEAVING = frozenset({Residency.DRAINING, Residency.FALLING_ASLEEP, Residency.UNLOADING})


class Plan(NamedTuple):
    """Devices for one model, and the models that have to leave them."""

    devices: tuple[str, ...]
    victims: tuple[ModelState, ...]
    cost: float  # seconds that predictions wait because of it, without the model's own load
    sleep: bool  # True: victims that can sleep may do so; False: all have to be unloaded


class _Option(NamedTuple):
    """A plan for one device. The first five fields order options, best first."""

    cost: float  # seconds that predictions wait because of it
    evictions: int
    must_wait: bool
    negative_free: int  # minus the bytes that stay free
    device: str
    victims: tuple[ModelState, ...]
    sleep: bool


def plan(
    model: ModelState,
    ledger: Ledger,
    promised: Mapping[str, int],
    now: float,
    *,
    patient: bool,
    completable: set[str] | None,
    among: Iterable[str] | None,
) -> Plan | None:
    """Return the best plan to load ``model``; None if there is none at the moment.

    A patient model evicts only idle models whose minimum residency is over, and only if that costs less than
    its benefit. An impatient one may evict every model that is not pinned, once its predictions have
    finished.

    Args:
        model: The model to load.
        ledger: Reservations of all devices.
        promised: Bytes by device that are kept for more urgent models.
        now: Seconds on the scheduler's clock.
        patient: Whether the model still waits for others to become idle.
        completable: The predictions that can finish before this model is loaded; None stands for all.
        among: The devices to choose from; None stands for all that the model may be loaded on.
    """
    options = []
    for device in ledger.eligible_devices(model.demand) if among is None else among:
        option = _plan_for_device(
            model, ledger, device, promised[device], now, patient=patient, completable=completable
        )
        if option is not None:
            options.append(option)
    if len(options) < model.demand.devices:
        return None
    chosen = sorted(options, key=lambda option: option[:5])[: model.demand.devices]
    victims = {victim.name: victim for option in chosen for victim in option.victims}
    return Plan(
        tuple(sorted(option.device for option in chosen)),
        tuple(victims[name] for name in sorted(victims)),
        sum(option.cost for option in chosen),
        all(option.sleep for option in chosen),
    )


def _plan_for_device(
    model: ModelState,
    ledger: Ledger,
    device: str,
    promised: int,
    now: float,
    *,
    patient: bool,
    completable: set[str] | None,
) -> _Option | None:
    needed = model.demand.bytes_on(ledger.capacities[device])
    if needed > ledger.capacities[device].memory:
        return None
    others = [each for each in ledger.models_on(device) if each is not model]
    # A sleeping model can reuse the memory that it still holds on this device.
    available = ledger.free(device) + ledger.reserved_by(model, device) - promised
    missing = needed - available

    # Memory that becomes free without an eviction is used first, starting with what is free soonest.
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

    # Evictions free the rest: victims sleep if that frees enough, else they are unloaded.
    candidates = [
        each for each in others if _evictable(each, now, patient=patient) and _finishes(each, completable)
    ]
    levels = _sleep_levels(candidates, ledger, now, model)
    victims = _cheapest_victims(levels, missing, device, ledger, now)
    sleep = victims is not None
    if victims is None:  # sleeping models may keep too much
        levels = dict.fromkeys(levels)
        victims = _cheapest_victims(levels, missing, device, ledger, now)
    if victims is None:
        return None
    wait = max([wait, *(policy.seconds_until_free(victim, now) for victim in victims)])
    cost = sum(policy.eviction_cost(victim, now, levels[victim]) for victim in victims)
    if patient and cost > policy.eviction_benefit(model, now):
        return None
    cost += wait * policy.priority_weight(model) * max(1, len(model.queue))
    return _Option(cost, len(victims), wait > 0, needed - available, device, victims, sleep)


def _cheapest_victims(
    levels: Mapping[ModelState, SleepLevel | None], missing: int, device: str, ledger: Ledger, now: float
) -> tuple[ModelState, ...] | None:
    """Return the models to evict for ``missing`` bytes at the least cost; None if all are not enough.

    ``levels`` holds the candidates, with the level at which each would sleep; None means an unload.
    """
    if missing <= 0:
        return ()
    price = {
        each: policy.eviction_cost(each, now, level) + policy.seconds_until_free(each, now)
        for each, level in levels.items()
    }
    freed = {each: _freed_memory(each, device, ledger, level) for each, level in levels.items()}
    # By cost per freed byte; among equals the least recently used first.
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
    for each in sorted(chosen, key=lambda each: -price[each]):  # spare those that are not needed after all
        if missing + freed[each] <= 0:
            chosen.remove(each)
            missing += freed[each]
    return tuple(chosen)


def _sleep_levels(
    candidates: list[ModelState], ledger: Ledger, now: float, waiter: ModelState
) -> dict[ModelState, SleepLevel | None]:
    """Return for each candidate the level at which it would sleep; None if it would be unloaded."""
    return {
        each: policy.cheapest_sleep_level(each, now, ledger.main_memory_for(each), waiter)
        if each.can_sleep and each.state is not Residency.ASLEEP
        else None
        for each in candidates
    }


def _freed_memory(model: ModelState, device: str, ledger: Ledger, level: SleepLevel | None = None) -> int:
    """Return the bytes of the device that are free once the model has fallen asleep, or was unloaded."""
    reserved, footprint = ledger.reserved_by(model, device), model.demand.sleep_footprint
    if device not in model.devices:  # main memory, which holds weights of a sleeping model until its unload
        return reserved if model.state in {Residency.ASLEEP, Residency.UNLOADING} else 0
    if model.state is Residency.FALLING_ASLEEP:
        level = model.sleep_level
    return reserved if level is None or footprint is None else max(0, reserved - footprint.residue)


def _evictable(model: ModelState, now: float, *, patient: bool) -> bool:
    if model.pinned:
        return False
    if model.state is Residency.ASLEEP:
        return not patient or model.idle
    if patient:
        return model.idle and policy.residency_elapsed(model, now)
    return model.state in {Residency.READY, Residency.LOADING, Residency.WAKING}


def _finishes(model: ModelState, completable: set[str] | None) -> bool:
    return completable is None or model.running <= completable
