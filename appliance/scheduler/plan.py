"""Where a model is loaded, and who makes room for it there: the choice that costs predictions the least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.facts import Level, Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState

_LEAVING = frozenset({Residency.DRAINING, Residency.FALLING_ASLEEP, Residency.UNLOADING})


class Plan(NamedTuple):
    """Devices for one model, and what has to leave them."""

    devices: tuple[str, ...]
    victims: tuple[ModelState, ...]
    cost: float  # seconds that predictions wait because of it, besides its own load
    sleep: bool  # whether it is enough that those of them that can fall asleep


class _Option(NamedTuple):
    """One device; sorted, the best comes first."""

    cost: float  # seconds that predictions wait because of it
    evictions: int
    busy: bool
    left: int  # negative bytes that stay free
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
    ending: set[str] | None = None,
    among: Iterable[str] | None = None,
) -> Plan | None:
    """The best devices of ``among`` (default: all it may have) for ``model``; None while there is no way.

    ``promised`` has bytes by device that others, who come first, wait for. A patient model takes the room of
    idle ones that have had their time; an impatient one of whoever is not pinned, once that has ended what it
    does. ``ending`` has the predictions that end without this model being loaded; None stands for all of
    them.
    """
    options = []
    for device in ledger.places(model.demand) if among is None else among:
        option = _option(model, ledger, device, promised[device], now, patient=patient, ending=ending)
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


def _option(
    model: ModelState,
    ledger: Ledger,
    device: str,
    promised: int,
    now: float,
    *,
    patient: bool,
    ending: set[str] | None,
) -> _Option | None:
    need = model.demand.bytes_on(ledger.capacities[device])
    here = [each for each in ledger.here(device) if each is not model]
    if need > ledger.capacities[device].memory:
        return None
    loading = ledger.loading(device)
    wait = 0.0 if loading is None else _rest_of_load(loading, now)
    # A sleeper that is woken, or loaded elsewhere, brings what it still holds.
    missing = need + promised - ledger.free(device) - ledger.held(model, device)
    leaving = sorted(
        (policy.freed_in(each, now), _leaves(each, device, ledger))
        for each in here
        if each.state in _LEAVING and (each.state is not Residency.DRAINING or _ends(each, ending))
    )
    for seconds, memory in leaving:
        if missing > 0:
            missing -= memory
            wait = max(wait, seconds)
    allowed = [each for each in here if _may_go(each, now, patient=patient) and _ends(each, ending)]
    tiers = _tiers(allowed, ledger, now, model)
    victims = _victims(tiers, missing, device, ledger, now)
    sleep = victims is not None
    if victims is None:  # what is left of sleepers may be too much
        tiers = dict.fromkeys(tiers)
        victims = _victims(tiers, missing, device, ledger, now)
    if victims is None:
        return None
    wait = max([wait, *(policy.freed_in(victim, now) for victim in victims)])
    cost = sum(policy.eviction_cost(victim, now, tiers[victim]) for victim in victims)
    if patient and cost > policy.eviction_benefit(model, now):
        return None
    cost += wait * policy.weight(model) * max(1, len(model.queue))
    left = ledger.free(device) + ledger.held(model, device) - promised - need
    return _Option(cost, len(victims), wait > 0, -left, device, victims, sleep)


def _tiers(
    allowed: list[ModelState], ledger: Ledger, now: float, waiter: ModelState
) -> dict[ModelState, Level | None]:
    """How each of them would make room: asleep, or unloaded with None."""
    return {
        each: policy.tier(each, now, ledger.main_for(each), waiter)
        if each.may_sleep and each.state is not Residency.ASLEEP
        else None
        for each in allowed
    }


def _leaves(model: ModelState, device: str, ledger: Ledger, level: Level | None = None) -> int:
    """Bytes of the device that are free once the model has fallen asleep, or is unloaded."""
    held, asleep = ledger.held(model, device), model.demand.asleep
    if device not in model.devices:  # its weights in main memory, which go with the sleeper
        return held if model.state in {Residency.ASLEEP, Residency.UNLOADING} else 0
    falls = model.level if model.state is Residency.FALLING_ASLEEP else level
    return held if falls is None or asleep is None else max(0, held - asleep.residue)


def _victims(
    tiers: Mapping[ModelState, Level | None], missing: int, device: str, ledger: Ledger, now: float
) -> tuple[ModelState, ...] | None:
    """The cheapest models to evict for ``missing`` bytes; None if they are not enough."""
    if missing <= 0:
        return ()
    price = {
        each: policy.eviction_cost(each, now, level) + policy.freed_in(each, now)
        for each, level in tiers.items()
    }
    frees = {each: _leaves(each, device, ledger, level) for each, level in tiers.items()}
    # By what a byte of theirs is worth; of equals, the least recently used.
    ordered = sorted(
        (each for each in tiers if frees[each] > 0),
        key=lambda each: (price[each] / frees[each], each.last_used, each.name),
    )
    chosen: list[ModelState] = []
    for each in ordered:
        if missing <= 0:
            break
        chosen.append(each)
        missing -= frees[each]
    if missing > 0:
        return None
    for each in sorted(chosen, key=lambda each: -price[each]):  # without whom it is enough as well
        if missing + frees[each] <= 0:
            chosen.remove(each)
            missing += frees[each]
    return tuple(chosen)


def _may_go(model: ModelState, now: float, *, patient: bool) -> bool:
    if model.pinned:
        return False
    if model.state is Residency.ASLEEP:
        return not patient or model.idle
    if patient:
        return model.idle and policy.had_its_time(model, now)
    return model.state in {Residency.READY, Residency.LOADING, Residency.WAKING}


def _ends(model: ModelState, ending: set[str] | None) -> bool:
    return ending is None or model.running <= ending


def _rest_of_load(loading: ModelState, now: float) -> float:
    return max(1.0, policy.expected_return(loading) - (now - loading.state_since))
