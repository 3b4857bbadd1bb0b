"""Routes that search for models, and add, update and remove them in models.yaml."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from appliance import adding
from appliance import config as configuration
from appliance.config import Config, Report, includes
from appliance.config.edit import change_entry, remove_entry
from appliance.config.edit_file import preview
from appliance.domain.errors import (
    ApplianceError,
    BadRequest,
    ConfigError,
    Conflict,
    MalformedQuery,
    NotFound,
    RequestError,
)
from appliance.domain.token import Scope
from appliance.gateway.api import audit, requests, responses
from appliance.gateway.api.replicate.streams import HEADERS, IDLE
from appliance.gateway.api.services import Services, services_of
from appliance.gateway.engine.additions import Addition
from appliance.protocols import serializers
from appliance.protocols.adding_types import (
    AdditionRequest,
    AdditionResponse,
    CatalogueModelResponse,
    CatalogueResponse,
    DeviceFit,
    FitResponse,
    HubModelResponse,
    HubSearchResponse,
    ProposalRequest,
    ProposalResponse,
    PruneRequest,
    PruneResponse,
    RemovalResponse,
    UnusedWeights,
    UpdateResponse,
)
from appliance.protocols.admin_types import ReloadResponse

_HUB_ROWS: Final = 20
#: Options of the command `appliance add` in messages, which are fields of the request here.
_OPTION: Final = re.compile(r"--(name|file|kind|task|force)\b")


@contextlib.contextmanager
def _as_request_errors() -> Iterator[None]:
    """Convert errors of a source, or of models.yaml, which the caller can correct."""
    try:
        yield
    except RequestError:
        raise
    except ConfigError as error:
        raise Conflict(_as_fields(error.detail)) from error
    except ApplianceError as error:
        raise BadRequest(_as_fields(error.detail)) from error


def _as_fields(message: str) -> str:
    return _OPTION.sub(r"the field \1", message)


async def search_catalogue(request: Request) -> Response:
    """``GET /admin/catalogue``: all models, or those that match ``query``."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    word = request.query_params.get("query", "")
    with _as_request_errors():
        models = await asyncio.to_thread(adding.catalogue, services.config)
    devices = _devices(services)
    found = adding.search(word, models) if word else models
    listed = [
        msgspec.convert(
            {**model.model_dump(), "fit": _fit(adding.find_fit(model.memory, devices))},
            CatalogueModelResponse,
        )
        for model in found
    ]
    return responses.json(CatalogueResponse(models=listed))


async def search_hub(request: Request) -> Response:
    """``GET /admin/hub``: repositories whose names contain ``query``."""
    await requests.caller(request, Scope.ADMIN)
    word = request.query_params.get("query", "")
    if not word:
        raise MalformedQuery("The query parameter `query` is missing.")
    with _as_request_errors():
        found = await asyncio.to_thread(adding.search_hub, word, _HUB_ROWS)
    models = [
        HubModelResponse(source=f"hub:{each.repository}", **msgspec.structs.asdict(each)) for each in found
    ]
    return responses.json(HubSearchResponse(models=models))


async def propose(request: Request) -> Response:
    """``POST /admin/proposals``: changes nothing, but downloads wheels and git repositories."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    given = await requests.parse(request, ProposalRequest)
    plan = await _plan(given, services)
    proposal = plan.proposal
    return responses.json(
        ProposalResponse(
            name=proposal.name,
            kind=str(proposal.entry["kind"]),
            about=proposal.about,
            options=proposal.entry.get("options", {}),
            licence=proposal.licence,
            weights=proposal.stored,
            download=proposal.download,
            disk_free=shutil.disk_usage(services.reload.home).free,
            memory=plan.memory,
            fit=None if plan.fit is None else _fit(plan.fit),
            devices=tuple(_device_fit(each, plan.memory) for each in _devices(services)),
            gated=proposal.gated,
            problem=None if plan.problem is None else _as_fields(plan.problem),
            tested=proposal.tested,
            yaml=plan.yaml,
            diff=plan.edited.diff(services.additions.file),
        )
    )


async def add(request: Request) -> Response:
    """``POST /admin/additions``: responds at once; the download continues in the background."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    given = await requests.parse(request, AdditionRequest)
    plan = await _plan(given, services)
    audit.describe(request, object=plan.proposal.name, after=plan.proposal.entry)
    if given.yaml is not None and given.yaml != plan.yaml:
        raise Conflict(
            "The source has changed since the proposal, so the entry would be different now: request another "
            "proposal."
        )
    with _as_request_errors():
        plan.check(force=given.force)
        addition = await services.additions.start(
            "add", plan.proposal.entry, services.configure, force=given.force
        )
    return responses.json(_response(addition), 202)


async def list_additions(request: Request) -> Response:
    await requests.caller(request, Scope.ADMIN)
    return responses.json(
        serializers.page([_response(each) for each in services_of(request).additions.all()])
    )


async def get_addition(request: Request) -> Response:
    await requests.caller(request, Scope.ADMIN)
    return responses.json(_response(services_of(request).additions.get(request.path_params["id"])))


async def stream_addition(request: Request) -> Response:
    """``GET /admin/additions/{id}/events``: the addition now and at each change, until it is over."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    addition = services.additions.get(request.path_params["id"])
    return StreamingResponse(_events(services, addition.pending.id), 200, HEADERS, "text/event-stream")


async def _events(services: Services, id: str) -> AsyncIterator[bytes]:
    yield serializers.HEARTBEAT  # proxies forward the headers with the first byte of the body
    number = 0
    async for seen in services.additions.follow(id, IDLE):
        if seen is None:
            yield serializers.HEARTBEAT
            continue
        number += 1
        name = "done" if seen.over else "progress"
        yield serializers.event(name, str(number), serializers.encode(_response(seen)).decode())


async def cancel_addition(request: Request) -> Response:
    """``POST /admin/additions/{id}/cancel``: responds once the download has stopped."""
    await requests.caller(request, Scope.ADMIN)
    return responses.json(_response(await services_of(request).additions.cancel(request.path_params["id"])))


async def find_update(request: Request) -> Response:
    await requests.caller(request, Scope.ADMIN)
    model, update = await _update(request)
    return responses.json(UpdateResponse(model=model, old=update.old, new=update.new))


async def update(request: Request) -> Response:
    """``POST /admin/models/{owner}/{name}/update``: responds at once, as ``add``."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    model, found = await _update(request)
    audit.describe(request, object=model, before={"revision": found.old}, after={"revision": found.new})
    if found.old == found.new:
        raise BadRequest(f"The model {model} is at the newest revision, {found.old}.")
    file = services.additions.file

    with _as_request_errors():
        included = await asyncio.to_thread(includes.find_model, file, model)

        def edit(text: str) -> str:
            return change_entry(text, model, ("source", "revision"), found.new, str(included or file))

        edited = await asyncio.to_thread(preview, file, edit, included)
        entry = next(each for each in edited.config.models if each.name == model).model_dump(mode="json")
        addition = await services.additions.start("update", entry, services.configure, old_revision=found.old)
    return responses.json(_response(addition), 202)


async def remove(request: Request) -> Response:
    """``DELETE /admin/models/{owner}/{name}``: with ``prune=true``, weights only it used are deleted."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    name, file, home = requests.model_name(request), services.additions.file, services.reload.home
    prune = request.query_params.get("prune") == "true"

    with _as_request_errors():
        config = await asyncio.to_thread(configuration.load, file)
        if all(model.name != name for model in config.models):
            raise NotFound(f"models.yaml has no model {name}.")
        freed = await asyncio.to_thread(_freed, services, name)
        report = await services.additions.remove(name, services.configure)
        if prune:
            paths = [each.path for each in freed]
            freed = await asyncio.to_thread(adding.delete_unused, home, lambda: _configs(services), paths)
    audit.describe(
        request, object=name, after={"deleted": [str(each.path) for each in freed] if prune else []}
    )
    return responses.json(
        RemovalResponse(
            model=name, reload=_reload(report), weights=[_weights(each) for each in freed], deleted=prune
        )
    )


async def list_unused(request: Request) -> Response:
    """``GET /admin/weights/unused``: weights that neither models.yaml nor the config in effect uses."""
    await requests.caller(request, Scope.ADMIN)
    return responses.json(serializers.page([_weights(each) for each in await _unused(request)]))


async def prune(request: Request) -> Response:
    """``POST /admin/weights/prune``: delete some of the unused weights; nothing if one of them is in use."""
    await requests.caller(request, Scope.ADMIN)
    given = await requests.parse(request, PruneRequest)
    services = services_of(request)
    audit.describe(request, object=", ".join(given.paths))
    home, paths = services.reload.home, [Path(path) for path in given.paths]
    with _as_request_errors():
        deleted = await asyncio.to_thread(
            adding.delete_unused, home, lambda: _configs(services), paths, every=True
        )
    return responses.json(
        PruneResponse(deleted=[_weights(each) for each in deleted], freed=sum(each.size for each in deleted))
    )


async def _plan(given: ProposalRequest, services: Services) -> adding.AdditionPlan:
    """Look at a source, and at the change of models.yaml for it.

    Raises:
        RequestError: the source or models.yaml does not permit it.
    """
    file = services.additions.file

    def plan() -> adding.AdditionPlan:
        config = configuration.load(file)
        proposal = adding.propose(
            given.source,
            services.reload.home,
            given.name,
            given.file,
            lambda: adding.catalogue(config),
            kind=given.kind,
            task=given.task,
            relative=False,
        )
        return adding.plan(proposal, file, config, devices, services.devices.hardware)

    devices = _devices(services)
    with _as_request_errors():
        return await asyncio.to_thread(plan)


async def _update(request: Request) -> tuple[str, adding.Update]:
    """Return the name of the model in the request, and the newest revision of its source."""
    services, name = services_of(request), requests.model_name(request)
    with _as_request_errors():
        config = await asyncio.to_thread(configuration.load, services.additions.file)
        model = next((each for each in config.models if name in {each.name, *each.aliases}), None)
        if model is None:
            raise NotFound(f"models.yaml has no model {name}.")
        return model.name, await asyncio.to_thread(adding.find_update, model)


async def _unused(request: Request) -> list[adding.Unused]:
    services = services_of(request)
    with _as_request_errors():
        return await asyncio.to_thread(adding.unused, services.reload.home, lambda: _configs(services))


def _configs(services: Services) -> list[Config]:
    """Return the configs whose models use weights: that of the file, and the one in effect."""
    return [configuration.load(services.additions.file), services.reload.in_force]


def _freed(services: Services, name: str) -> list[adding.Unused]:
    """Return the weights that only one model of models.yaml uses.

    Raises:
        ConfigError: the model cannot be removed from the file.
    """
    file, home = services.additions.file, services.reload.home
    included = includes.find_model(file, name)
    after = preview(file, lambda text: remove_entry(text, name, str(included or file)), included)
    before = {each.path for each in adding.unused(home, lambda: [configuration.load(file)])}
    return [each for each in adding.unused(home, lambda: [after.config]) if each.path not in before]


def _devices(services: Services) -> list[adding.DeviceUse]:
    """Return the devices on which models compute, with the models that are loaded there."""
    status = services.engine.status()
    known = {device.name: device for device in services.devices}
    pinned = {model.name for model in status.models if model.pinned}
    return [
        adding.DeviceUse(
            each.name,
            known[each.name].kind,
            known[each.name].memory,
            each.free,
            {model: size for model, size in each.reserved.items() if model not in pinned},
        )
        for each in status.devices
        if not known[each.name].is_main_memory
    ]


def _fit(fit: adding.Fit) -> FitResponse:
    return FitResponse(state=fit.state, device=fit.device, evicts=fit.evicts)


def _device_fit(device: adding.DeviceUse, needed: int | None) -> DeviceFit:
    fit = None if needed is None else adding.find_fit(needed, [device])
    return DeviceFit(
        device=device.name,
        state=None if fit is None or fit.state == "not known" else fit.state,
        evicts=() if fit is None else fit.evicts,
        memory=device.memory,
        free=device.free,
    )


def _weights(found: adding.Unused) -> UnusedWeights:
    return UnusedWeights(path=str(found.path), size=found.size)


def _reload(report: Report) -> ReloadResponse:
    return msgspec.convert(report, ReloadResponse, from_attributes=True)


def _response(addition: Addition) -> AdditionResponse:
    given = addition.pending
    return AdditionResponse(
        id=given.id,
        model=given.model,
        action=given.action,
        state=addition.state,
        step=addition.step,
        done=addition.done,
        total=addition.total,
        problem=None if addition.problem is None else _as_fields(addition.problem),
        reload=None if addition.report is None else _reload(addition.report),
        created_at=serializers.timestamp(given.created_at),
        ended_at=None if addition.ended_at is None else serializers.timestamp(addition.ended_at),
    )


_ADDITION: Final = "/admin/additions/{id}"
_MODEL: Final = "/admin/models/{owner}/{name}"
ROUTES: Final = (
    Route("/admin/catalogue", search_catalogue, methods=["GET"]),
    Route("/admin/hub", search_hub, methods=["GET"]),
    Route("/admin/proposals", propose, methods=["POST"]),
    Route("/admin/additions", add, methods=["POST"]),
    Route("/admin/additions", list_additions, methods=["GET"]),
    Route(_ADDITION, get_addition, methods=["GET"]),
    Route(f"{_ADDITION}/events", stream_addition, methods=["GET"]),
    Route(f"{_ADDITION}/cancel", cancel_addition, methods=["POST"]),
    Route(f"{_MODEL}/update", find_update, methods=["GET"]),
    Route(f"{_MODEL}/update", update, methods=["POST"]),
    Route(_MODEL, remove, methods=["DELETE"]),
    Route("/admin/weights/unused", list_unused, methods=["GET"]),
    Route("/admin/weights/prune", prune, methods=["POST"]),
)
