"""Routes for the state of the appliance, and for loading and unloading models."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance import __version__
from appliance.domain.errors import BadRequest, ConfigError
from appliance.domain.token import Scope
from appliance.gateway.api import audit, requests, responses
from appliance.gateway.api.replicate.account import account_response
from appliance.gateway.api.services import Services, services_of
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.machine import Device
from appliance.protocols.account_types import MeResponse
from appliance.protocols.admin_types import (
    ApplianceStatusResponse,
    DeviceMemoryUse,
    DeviceStatus,
    ModelNotServed,
    ModelStateResponse,
    ReloadResponse,
)


async def get_me(request: Request) -> Response:
    caller = await requests.caller(request, Scope.READ)
    name = account_response(caller.owner, request).name
    return responses.json(
        MeResponse(
            username=caller.owner,
            name=name,
            token=caller.name,
            scope=caller.effective_scope,
            signed_in_with=caller.signed_in_with,
        )
    )


#: What the memory of models that the caller may not see is named.
_OTHERS: Final = "other models"


async def get_status(request: Request) -> Response:
    services = services_of(request)
    caller = await requests.caller(request, Scope.READ)
    status = services.engine.status()
    allows = caller.access.allows
    known = {device.name: device for device in services.devices}
    left_out = services.reload.left_out | services.builds.left_out
    return responses.json(
        ApplianceStatusResponse(
            version=__version__,
            uptime=round(time.time() - services.started_at, 3),
            draining=status.draining,
            queued=status.queued,
            models=[each for each in status.models if allows(each.name.partition("@")[0])],
            devices=[_device(known[memory.name], memory, allows) for memory in status.devices],
            decisions=[] if caller.access.restricted else status.decisions,
            not_served=[
                ModelNotServed(name=name, problem=why) for name, why in left_out.items() if allows(name)
            ],
            runs_models=services.devices.hardware.runs_models,
        )
    )


def _device(device: Device, memory: DeviceMemoryUse, allows: Callable[[str], bool]) -> DeviceStatus:
    reserved = {name: size for name, size in memory.reserved.items() if allows(name.partition("@")[0])}
    hidden = sum(memory.reserved.values()) - sum(reserved.values())
    return DeviceStatus(
        name=device.name,
        reserved=reserved | ({_OTHERS: hidden} if hidden else {}),
        free=memory.free,
        foreign=memory.foreign,
        kind=device.kind,
        memory=device.memory,
        label=device.label,
        logical=device.logical,
        is_main_memory=device.is_main_memory,
    )


async def get_residency(request: Request) -> Response:
    await requests.caller(request, Scope.ADMIN)
    return responses.json(services_of(request).engine.residency_report())


async def reload_config(request: Request) -> Response:
    """``POST /admin/reload``: read models.yaml again; responds once its changes are in effect."""
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    try:
        report = await services.reload.apply(services.configure)
    except ConfigError as error:
        raise BadRequest(f"models.yaml was not applied, and nothing has changed: {error.detail}") from error
    return responses.json(msgspec.convert(report, ReloadResponse, from_attributes=True))


async def load_model(request: Request) -> Response:
    """``POST /admin/models/{owner}/{name}/load``: responds once the model is ready."""
    services = services_of(request)
    entry = await _entry(request)
    await services.engine.load(entry)
    return responses.json(_state(entry, services))


async def unload_model(request: Request) -> Response:
    """``POST /admin/models/{owner}/{name}/unload``: responds at once; running predictions end first."""
    services = services_of(request)
    entry = await _entry(request)
    await services.engine.unload(entry)
    return responses.json(_state(entry, services), 202)


async def pin_model(request: Request) -> Response:
    """``POST /admin/models/{owner}/{name}/pin``: load the model, and never evict it."""
    return await _pin(request, pinned=True)


async def unpin_model(request: Request) -> Response:
    """``POST /admin/models/{owner}/{name}/unpin``: allow eviction, even if models.yaml pins the model."""
    return await _pin(request, pinned=False)


async def _pin(request: Request, *, pinned: bool) -> Response:
    services = services_of(request)
    entry = await _entry(request)
    services.engine.pin(entry, pinned=pinned)
    audit.describe(request, object=entry.name, after={"pinned": pinned})
    body = _state(entry, services)
    body.pinned = pinned
    body.detail = "This lasts until the appliance restarts; models.yaml is unchanged."
    return responses.json(body, 202)


def _state(entry: ServedVersion, services: Services) -> ModelStateResponse:
    return ModelStateResponse(name=entry.name, state=services.engine.residency(entry).value)


async def _entry(request: Request) -> ServedVersion:
    caller = await requests.caller(request, Scope.ADMIN)
    return services_of(request).catalogue.resolve(
        requests.model_name(request), caller.access.of_all_accounts()
    )


ROUTES: Final = (
    Route("/admin/me", get_me, methods=["GET"]),
    Route("/admin/status", get_status, methods=["GET"]),
    Route("/admin/residency", get_residency, methods=["GET"]),
    Route("/admin/reload", reload_config, methods=["POST"]),
    Route("/admin/models/{owner}/{name}/load", load_model, methods=["POST"]),
    Route("/admin/models/{owner}/{name}/unload", unload_model, methods=["POST"]),
    Route("/admin/models/{owner}/{name}/pin", pin_model, methods=["POST"]),
    Route("/admin/models/{owner}/{name}/unpin", unpin_model, methods=["POST"]),
)
