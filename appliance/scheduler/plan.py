"""Where a model is loaded, and who makes room for it there: the choice that costs predictions the least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.facts import Residency
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import Model

_LEAVING = frozenset({Residency.DRAINING, Residency.UNLOADING})


class Plan(NamedTuple):
    """Devices for one model, and what has to leave them."""

    devices: tuple[str, ...]
    victims: tuple[Model, ...]


class _Option(NamedTuple):
    """One device; sorted, the best comes first."""

    cost: float  # seconds that predictions wait because of it
    evictions: int
    busy: bool
    left: int  # negative bytes that stay free
    device: str
    victims: tuple[Model, ...]


def plan(
    model: Model,
    ledger: Ledger,
    promised: Mapping[str, int],
    now: float,
    *,
    patient: bool,
    ending: set[str] | None = None,
    among: Iterable[str] | None = None,
) -> Plan | None:
    """The best devices of ``among`` (default: all) for ``model``; None while there is no way.

    ``promised`` has bytes by device that others, who come first, wait for. A patient model takes the room of
    idle ones that have had their time; an impatient one of whoever is not pinned, once that has ended what it
    does. ``ending`` has the predictions that end without this model being loaded; None stands for all of
    them.
    """
    options = []
    for device in ledger.capacities if among is None else among:
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
    )


def _option(
    model: Model,
    ledger: Ledger,
    device: str,
    promised: int,
    now: float,
    *,
    patient: bool,
    ending: set[str] | None,
) -> _Option | None:
    need = model.demand.bytes_on(ledger.capacities[device])
    here = ledger.here(device)
    if need > ledger.capacities[device].memory:
        return None
    loading = ledger.loading(device)
    wait = 0.0 if loading is None else _rest_of_load(loading, now)
    missing = need + promised - ledger.free(device)
    leaving = sorted(
        (policy.freed_in(each, now), each.reserved)
        for each in here
        if each.state in _LEAVING and (each.state is Residency.UNLOADING or _ends(each, ending))
    )
    for seconds, memory in leaving:
        if missing > 0:
            missing -= memory
            wait = max(wait, seconds)
    victims = _victims(here, missing, now, patient=patient, ending=ending)
    if victims is None:
        return None
    wait = max([wait, *(policy.freed_in(victim, now) for victim in victims)])
    cost = sum(policy.regret(victim, now) for victim in victims)
    if patient and cost > policy.gain(model, now):
        return None
    cost += wait * policy.weight(model) * max(1, len(model.queue))
    left = ledger.free(device) - promised - need
    return _Option(cost, len(victims), wait > 0, -left, device, victims)


def _victims(
    here: list[Model], missing: int, now: float, *, patient: bool, ending: set[str] | None
) -> tuple[Model, ...] | None:
    """The cheapest models to evict for ``missing`` bytes; None if they are not enough."""
    if missing <= 0:
        return ()
    allowed = [each for each in here if _may_go(each, now, patient=patient) and _ends(each, ending)]
    # By what a byte of theirs is worth; of equals, the least recently used.
    allowed.sort(key=lambda each: (_price(each, now) / max(1, each.reserved), each.last_used, each.name))
    chosen: list[Model] = []
    for each in allowed:
        if missing <= 0:
            break
        chosen.append(each)
        missing -= each.reserved
    if missing > 0:
        return None
    for each in sorted(chosen, key=lambda each: -_price(each, now)):  # without whom it is enough as well
        if missing + each.reserved <= 0:
            chosen.remove(each)
            missing += each.reserved
    return tuple(chosen)


def _price(model: Model, now: float) -> float:
    return policy.regret(model, now) + policy.freed_in(model, now)


def _may_go(model: Model, now: float, *, patient: bool) -> bool:
    if model.pinned:
        return False
    if patient:
        return model.idle and policy.had_its_time(model, now)
    return model.state in {Residency.READY, Residency.LOADING}


def _ends(model: Model, ending: set[str] | None) -> bool:
    return ending is None or model.running <= ending


def _rest_of_load(loading: Model, now: float) -> float:
    return max(1.0, policy.expected_load(loading) - (now - loading.state_since))
