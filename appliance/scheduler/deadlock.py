"""Which predictions can get on, where some of them wait for parts of theirs.

A prediction that waits for a part keeps its slot and the memory of its model meanwhile. If the part needs
those, they wait for each other for ever. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from appliance.scheduler.facts import Capacity, Demand, Residency

#: What is loaded, or will be: what waits for it begins once it has a slot.
RUNNING: Final = frozenset({Residency.READY, Residency.LOADING, Residency.WAKING})


class Model(Protocol):
    """What is looked at of a model."""

    demand: Demand
    state: Residency
    running: set[str]
    devices: tuple[str, ...]
    reserved: int

    @property
    def name(self) -> str:
        """What it is loaded as."""

    @property
    def waiting(self) -> Iterable[str]:
        """The ids that wait for it."""

    @property
    def pinned(self) -> bool:
        """Whether it is never evicted."""


def completable(
    models: Mapping[str, Model],
    parts: Mapping[str, set[str]],
    capacities: Sequence[Capacity],
    *,
    without: str | None = None,
) -> set[str]:
    """The ids of all running and waiting predictions that can come to their end.

    ``parts`` has the unfinished parts of every prediction that has any; it is taken to wait for one of them.
    What waits for the model ``without`` is taken to wait for ever.
    """
    hope: set[str] = set()
    while True:
        more: set[str] = set()
        for name, model in models.items():
            more |= {id for id in model.running if not parts.get(id) or not hope.isdisjoint(parts[id])}
            if name != without and _starts(model, models.values(), capacities, hope):
                more.update(model.waiting)
        if more <= hope:
            return hope
        hope |= more


def _starts(model: Model, models: Iterable[Model], capacities: Sequence[Capacity], hope: set[str]) -> bool:
    """Whether what waits for ``model`` gets its turn once those in ``hope`` have ended."""
    if model.state in RUNNING:
        return len(model.running) < model.demand.concurrency or not hope.isdisjoint(model.running)
    if model.state is Residency.DRAINING and not model.running <= hope:
        return False
    free = free_at_last(model, models, capacities, hope)
    roomy = [c for c in fitting(model, capacities) if model.demand.bytes_on(c) <= free[c.device]]
    return len(roomy) >= model.demand.devices


def free_at_last(
    model: Model, models: Iterable[Model], capacities: Sequence[Capacity], hope: set[str]
) -> dict[str, int]:
    """Bytes of each device that ``model`` could get once those in ``hope`` have ended."""
    staying = [each for each in models if each is not model and (each.pinned or not each.running <= hope)]
    return {
        capacity.device: capacity.memory
        - sum(each.reserved for each in staying if capacity.device in each.devices)
        for capacity in capacities
    }


def fitting(model: Model, capacities: Sequence[Capacity]) -> list[Capacity]:
    """Those that such a model may be placed on."""
    return [capacity for capacity in capacities if capacity.host is model.demand.on_host]


def why_never(model: Model, models: Iterable[Model], capacities: Sequence[Capacity], hope: set[str]) -> str:
    """Why what waits for ``model`` could never begin, for people."""
    name, demand, models = model.name, model.demand, list(models)
    if model.state in RUNNING:
        return (
            f"this part could never begin: model {name} runs {demand.concurrency} at a time, and those "
            "that it runs wait for their own parts"
        )
    places = fitting(model, capacities)
    waiting = sorted(each.name for each in models if each.devices and not each.running <= hope)
    free = free_at_last(model, models, capacities, hope)
    sizes = ", ".join(f"{place.device} has {free[place.device]:,}" for place in places)
    needs = max(demand.bytes_on(place) for place in places)
    return (
        f"this part could never begin: model {name} needs {needs:,} bytes on {demand.devices} device(s), "
        f"but beside {', '.join(waiting)}, which waits for its parts, {sizes} bytes; "
        "lower their memory in models.yaml"
    )
