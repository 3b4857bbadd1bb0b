"""Reconciles the loaded models with an edited models.yaml: keeps, reloads or unloads each model."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from appliance.gateway.catalogue.catalogue import Catalogue, ServedVersion
from appliance.gateway.engine.instances import Instances
from appliance.scheduler import Demand, Scheduler


def reconcile(
    scheduler: Scheduler,
    catalogue: Catalogue,
    instances: Instances,
    demands: Iterable[Demand],
    before: Mapping[str, ServedVersion],
) -> list[ServedVersion]:
    """Pass the new demands to the scheduler; return the versions whose load options have changed.

    ``demands`` has the demands of the models in models.yaml. ``before`` maps instances to the versions that
    could be loaded until now; ``catalogue`` has the new versions.
    """
    now = time.monotonic()
    asked = {demand.model: demand for demand in demands}
    asked |= instances.demands_after_reload(asked)
    entries = catalogue.entries_by_key
    for key, entry in entries.items():
        if _loaded_separately(entry) and key not in asked and scheduler.knows(key):
            # A pushed model is not in models.yaml.
            base = asked.get(entry.model.name) or scheduler.demand(entry.model.name)
            asked[key] = msgspec.structs.replace(base, model=key, pin=False, preload=False)
    changed = []
    for key, demand in asked.items():
        if key in entries:
            known = before.get(key)
            anew = known is None or _load_key(known) != _load_key(entries[key])
            scheduler.update(demand, now, replace=anew)
            if anew:
                changed.append(entries[key])
    for key in scheduler.models:
        if key not in entries:
            scheduler.remove(key, now)
    return changed


def _loaded_separately(entry: ServedVersion) -> bool:
    """Return whether the version is a Cog project with trained weights, loaded beside its base model."""
    return entry.runs_on != entry.model.name and entry.kind == entry.model.kind and entry.adapter is not None


def _load_key(entry: ServedVersion) -> tuple[Any, ...]:
    """Return the options of a version that require a reload when they change."""
    model = entry.model
    size = (model.memory, model.gpu, model.machines)
    return entry.version, entry.kind, model.options, model.source, *size, model.threads
