"""Adopts the models and predictions of an earlier gateway."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

import msgspec

from appliance.domain import input_schema, usage
from appliance.domain.access import UNRESTRICTED, Access
from appliance.domain.errors import HeadRunsNoModels, InvalidVersion, RequestError
from appliance.domain.prediction import Prediction, Status
from appliance.gateway.catalogue import adapters
from appliance.gateway.catalogue.catalogue import Catalogue, ServedVersion, operating
from appliance.gateway.engine.active import HIDDEN
from appliance.gateway.engine.dependencies import Dependencies
from appliance.gateway.engine.instances import Instances
from appliance.gateway.engine.loads import Loads
from appliance.gateway.engine.memory_profiles import MemoryProfiles
from appliance.gateway.engine.predictions import INTERRUPTED, Predictions
from appliance.machine.hardware import LET_HEAD_RUN, NO_MODELS
from appliance.scheduler import Residency

_log = logging.getLogger(__name__)


class AdoptedInstance(NamedTuple):
    """An instance that an earlier gateway loaded."""

    devices: tuple[str, ...]
    predictions: frozenset[str]  # ids of those that its worker process holds


Held = dict[str, AdoptedInstance]  # by instance


async def restore_budgets(dependencies: Dependencies) -> None:
    """Restore the counts of the budgets from the usage of this month."""
    now = time.time()
    rows = await dependencies.store.usage.rows(
        ("day", "owner", "token", "model"), first=f"{usage.day(now)[:7]}-01"
    )
    dependencies.budgets.restore(rows, now)


async def adopt_models(dependencies: Dependencies, loads: Loads, memory_profiles: MemoryProfiles) -> Held:
    """Keep the loaded models whose configuration is unchanged; unload the others."""
    held: Held = {}
    for adopted in await dependencies.cluster.adopt():
        model = adopted.spec.model
        if await loads.adopt(adopted):
            memory_profiles.adopted(model)
            held[model] = AdoptedInstance(adopted.spec.placement, adopted.held)
            _log.info("model %s is still loaded and has %d unfinished predictions", model, len(adopted.held))
    return held


async def recover_predictions(
    dependencies: Dependencies,
    predictions: Predictions,
    instances: Instances,
    memory_profiles: MemoryProfiles,
    held: Held,
) -> list[Prediction]:
    """Queue, resume or retry every unfinished prediction; return failed records of those that cannot run."""
    failed: list[Prediction] = []
    unfinished = await dependencies.store.unfinished()
    ids = {prediction.id for prediction in unfinished}
    for model, adopted in held.items():
        for orphan in adopted.predictions - ids:  # not stored, or it has ended and the cancel got lost
            dependencies.cluster.discard(model, orphan)
    for prediction in unfinished:
        try:
            entry = served(dependencies.catalogue, prediction)
            add_to_scheduler(dependencies, memory_profiles, entry)
            entry = _on_its_instance(instances, entry, prediction.id, held)
            validated = input_schema.validate(entry.interface, prediction.input)
            validated = adapters.selected(dependencies.catalogue, entry, validated, Access(prediction.owner))
        except RequestError as error:
            failed.append(_interrupted(prediction, _reason(prediction, error)))
            continue
        if any(prediction.input.get(name) == HIDDEN for name in entry.interface.secret_inputs):
            reason = "its secret input was lost when the appliance stopped: send the prediction again"
            failed.append(_interrupted(prediction, reason))
            continue
        instance = held.get(entry.runs_on)
        is_held = instance is not None and prediction.id in instance.predictions
        if is_held and (problem := dependencies.files.problem_of_stored_output(prediction)) is not None:
            dependencies.cluster.discard(entry.runs_on, prediction.id)
            failed.append(_interrupted(prediction, problem))
            continue
        active = predictions.add(prediction, entry, validated)
        active.created = _stored()
        if prediction.status is Status.STARTING:
            if instance is not None and is_held and _is_ready(dependencies, entry):
                predictions.start_held(active, instance.devices)
            else:
                predictions.enqueue(active)
        else:
            predictions.resume(active, held=is_held)
            dependencies.cluster.stored(entry.runs_on, prediction.id, prediction.attempt, prediction.n)
    for record in failed:  # they are unfinished until their end is stored
        dependencies.budgets.add(record)
    await dependencies.inputs.keep_only(ids - {record.id for record in failed})
    return failed


def add_to_scheduler(
    dependencies: Dependencies, memory_profiles: MemoryProfiles, entry: ServedVersion
) -> None:
    """Add a version that is loaded separately from its base model, with the memory of the base model.

    Raises:
        InvalidVersion: a reload has replaced the version since it was looked up.
        HeadRunsNoModels: the version is a trainer, which can run on no machine.
    """
    if entry.runs_on == entry.model.training_key and not dependencies.devices.hardware.runs_models:
        raise HeadRunsNoModels(f"Trainings run only on the head of the cluster, {NO_MODELS}: {LET_HEAD_RUN}.")
    scheduler, catalogue = dependencies.scheduler, dependencies.catalogue
    if scheduler.knows(entry.runs_on):
        if not catalogue.serves(entry):
            raise InvalidVersion
    elif not scheduler.knows(entry.model.name):
        raise InvalidVersion
    else:
        catalogue.set_entry(entry)
        base = scheduler.demand(entry.model.name)
        scheduler.add(msgspec.structs.replace(base, model=entry.runs_on, pin=False, preload=False))
    memory_profiles.restore(entry)


def served(catalogue: Catalogue, prediction: Prediction) -> ServedVersion:
    """Return the version that runs a stored prediction.

    Raises:
        InvalidVersion: the version is no longer served.
    """
    if prediction.destination is None:
        entry = catalogue.by_version(prediction.version, UNRESTRICTED)
        if prediction.operation is None:
            return entry
        return operating(entry, prediction.operation, prediction.input)
    trainer = catalogue.trainer(prediction.version)
    if trainer is None:
        raise InvalidVersion
    return trainer


def _stored() -> asyncio.Future[None]:
    written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    written.set_result(None)
    return written


def _reason(prediction: Prediction, error: RequestError) -> str:
    """Return the reason why a stored prediction can no longer run, for the text of its error."""
    if isinstance(error, HeadRunsNoModels):
        return error.detail
    return f"version {prediction.version} of {prediction.model} is no longer served here"


def _interrupted(prediction: Prediction, reason: str) -> Prediction:
    return prediction.finished(Status.FAILED, time.time(), f"{INTERRUPTED}: {reason}")


def _is_ready(dependencies: Dependencies, entry: ServedVersion) -> bool:
    return dependencies.scheduler.residency(entry.runs_on) is Residency.READY


def _on_its_instance(instances: Instances, entry: ServedVersion, id: str, held: Held) -> ServedVersion:
    """Return ``entry`` on the instance that still runs this prediction, or on the least busy instance."""
    for key in instances.keys(entry.runs_on):
        if key in held and id in held[key].predictions:
            return msgspec.structs.replace(entry, runs_on=key)
    return instances.choose(entry)
