"""What an edited models.yaml means for what is loaded: what stays, what is loaded anew, what goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from appliance.gateway.catalogue.catalogue import Catalogue, Entry
from appliance.gateway.engine.instances import Instances
from appliance.scheduler import Demand, Scheduler


def renew(
    scheduler: Scheduler,
    catalogue: Catalogue,
    instances: Instances,
    demands: Iterable[Demand],
    before: Mapping[str, Entry],
) -> list[Entry]:
    """Tell the scheduler what is served now; gives what is, or will be, loaded as something else than before.

    ``demands`` is what the models of models.yaml ask for, ``before`` what could be loaded until now, by what
    it was loaded under; ``catalogue`` has the models of now.
    """
    now = time.monotonic()
    asked = {demand.model: demand for demand in demands}
    asked |= instances.renewed(asked)
    hosting = catalogue.hosting
    for key, entry in hosting.items():
        if _apart(entry) and key not in asked and scheduler.knows(key):
            base = asked.get(entry.model.name) or scheduler.demand(entry.model.name)  # pushed: not asked for
            asked[key] = msgspec.structs.replace(base, model=key, pin=False, preload=False)
    changed = []
    for key, demand in asked.items():
        if key in hosting:
            known = before.get(key)
            anew = known is None or _loading(known) != _loading(hosting[key])
            scheduler.put(demand, now, anew=anew)
            if anew:
                changed.append(hosting[key])
    for key in scheduler.models:
        if key not in hosting:
            scheduler.remove(key, now)
    return changed


def _apart(entry: Entry) -> bool:
    """Whether it is loaded for itself, as its base is: a project with weights of its own."""
    return entry.runs_on != entry.model.name and entry.kind == entry.model.kind and entry.adapter is not None


def _loading(entry: Entry) -> tuple[Any, ...]:
    """What makes it another thing that is loaded."""
    model = entry.model
    return entry.version, entry.kind, model.options, model.source, model.memory, model.gpu, model.threads
