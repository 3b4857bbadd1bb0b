"""Reports of the scheduler's state and events, for the log and the admin routes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.gateway.engine.loads import Loads
from appliance.machine.hardware import head_only
from appliance.protocols import serializers
from appliance.protocols.admin_types import (
    Decision,
    DeviceMemoryUse,
    DeviceResidency,
    ModelMemory,
    ModelResidency,
    ModelStatus,
    ResidencyResponse,
    SchedulerStatus,
    WaitingModel,
)
from appliance.scheduler import Event, EventKind, Residency, Scheduler

_log = logging.getLogger(__name__)

#: How many of the last decisions a status shows.
SHOWN: Final = 5

_LEVELS: Final = {
    EventKind.FAILED: logging.ERROR,
    EventKind.OUT_OF_MEMORY: logging.ERROR,
    EventKind.EXCEEDS: logging.WARNING,
}


def log(event: Event) -> None:
    _log.log(_LEVELS.get(event.kind, logging.INFO), "%s", event, extra={"model": event.model or None})


def status(
    scheduler: Scheduler,
    models: Iterable[tuple[ServedVersion, Sequence[str]]],
    loads: Loads | None = None,
    *,
    draining: bool,
) -> SchedulerStatus:
    """Return waiting models, ``models`` with their instances, devices, and the newest decisions.

    ``loads`` has the weights that are being copied, and the parts of models on several machines.
    """
    fits_nowhere = {each.model: each.reason for each in scheduler.unplaceable_models(time.monotonic())}
    return SchedulerStatus(
        draining=draining,
        queued=scheduler.queue_length(),
        models=[_model_status(scheduler, entry, keys, loads, fits_nowhere) for entry, keys in models],
        devices=[
            DeviceMemoryUse(
                name=device,
                reserved=scheduler.reserved(device),
                free=scheduler.free(device),
                foreign=scheduler.footprints.foreign_memory(device),
            )
            for device in scheduler.capacities
        ],
        decisions=decisions(scheduler, SHOWN),
    )


def _model_status(
    scheduler: Scheduler,
    entry: ServedVersion,
    instances: Sequence[str],
    loads: Loads | None,
    fits_nowhere: Mapping[str, str],
) -> ModelStatus:
    name = entry.runs_on
    return ModelStatus(
        name=name,
        kind=entry.model.kind,
        state=scheduler.residency(name).value,
        loading_for=_rounded(scheduler.loading_seconds(name, time.monotonic())),
        load_seconds=_rounded(scheduler.load_seconds(name)),
        pinned=scheduler.pinned(name),
        queued=sum(map(scheduler.queue_length, instances)),
        running=sum(len(scheduler.running(key)) for key in instances),
        devices=tuple(scheduler.devices(name)),
        instances=sum(scheduler.residency(key) is not Residency.COLD for key in instances),
        memory=footprint(scheduler, name),
        copying_to=None if loads is None else ", ".join(sorted(loads.copying.get(name, ()))) or None,
        parts=[] if loads is None else loads.parts(name),
        head_only=None if scheduler.demand(name).nodes is None else head_only(entry.model),
        fits_nowhere=next((fits_nowhere[key] for key in instances if key in fits_nowhere), None),
    )


def residency(scheduler: Scheduler) -> ResidencyResponse:
    """Return the scheduler's devices, models, waiting models and events."""
    now = time.monotonic()
    return ResidencyResponse(
        devices=[
            DeviceResidency(
                name=device,
                memory=memory,
                free=scheduler.free(device),
                foreign=scheduler.footprints.foreign_memory(device),
                reserved=scheduler.reserved(device),
            )
            for device, memory in scheduler.capacities.items()
        ],
        models=[
            ModelResidency(
                name=model,
                state=scheduler.residency(model).value,
                devices=tuple(scheduler.devices(model)),
                queued=scheduler.queue_length(model),
                running=len(scheduler.running(model)),
                load_seconds=_rounded(scheduler.load_seconds(model)),
                pinned=scheduler.pinned(model),
                priority=scheduler.demand(model).priority,
                memory=footprint(scheduler, model),
            )
            for model in scheduler.models
        ],
        waiting=[
            WaitingModel(
                position=position,
                model=entry.model,
                queued=entry.predictions,
                waited=round(entry.waited, 3),
                claimed_devices=entry.claimed_devices,
            )
            for position, entry in enumerate(scheduler.load_queue(now), 1)
        ],
        decisions=decisions(scheduler),
    )


def footprint(scheduler: Scheduler, model: str) -> ModelMemory:
    """Return the memory of a model. If no machine with devices has joined, it is not known what fits."""
    known, any_devices = scheduler.footprints.of(model), bool(scheduler.capacities)
    return ModelMemory(
        bytes=known.demand.memory,
        share=known.demand.share,
        origin=known.demand.origin.value,
        estimate=known.estimate,
        peak=known.peak,
        exceeds=known.exceeds,
        out_of_memory=known.out_of_memory,
        fits=known.fits or not any_devices,
        fits_on=known.devices,
        problem=known.problem if any_devices else None,
    )


def decisions(scheduler: Scheduler, last: int | None = None) -> list[Decision]:
    """Return the ``last`` events of the scheduler's log, newest first; without ``last`` all that are kept."""
    started = _started()
    events = scheduler.events()
    return [
        Decision(
            number=each.number,
            at=serializers.timestamp(started + each.at),
            kind=each.kind.value,
            model=each.model,
            on_behalf_of=each.on_behalf_of,
            reason=each.reason,
            devices=each.devices,
            memory=each.memory,
            seconds=_rounded(each.seconds),
            idle=_rounded(each.idle),
            text=str(each),
        )
        for each in reversed(events if last is None else events[-last:])
    ]


def _started() -> float:
    """Return the Unix time at which the scheduler's clock was 0.

    Both clocks are read three times, and the two readings closest together are used, so an event has the same
    time in every report.
    """
    readings = []
    for _ in range(3):
        before, here, after = time.monotonic(), time.time(), time.monotonic()
        readings.append((after - before, here - after))
    return min(readings)[1]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
