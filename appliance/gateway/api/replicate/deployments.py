"""Routes for deployments, and for predictions with a deployment."""

from __future__ import annotations

import time
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.access import Right
from appliance.domain.audit import AuditEvent
from appliance.domain.deployment import Release
from appliance.domain.errors import BadRequest, FieldProblem, InvalidInput, NotFound
from appliance.domain.token import Scope, Token
from appliance.gateway.api import audit, requests, responses
from appliance.gateway.api.replicate.account import account_response
from appliance.gateway.api.replicate.predictions import create_prediction
from appliance.gateway.api.services import services_of
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.protocols import serializers
from appliance.protocols.request_types import (
    DeploymentRequest,
    DeploymentUpdateRequest,
    PredictionRequest,
)
from appliance.protocols.response_types import DeploymentResponse

#: A deployment can be deleted once it has been unused for this many seconds.
UNUSED: Final = 15 * 60


async def list_deployments(request: Request) -> Response:
    caller = await requests.caller(request, Scope.READ)
    found = await services_of(request).store.registry.deployments(caller.owner)
    visible = [release for release in found if _allowed(release, request, caller)]
    return responses.json(serializers.page([_shown(release, request) for release in visible]))


async def create_deployment(request: Request) -> Response:
    caller = await requests.caller(request, Scope.RUN, right=Right.DEPLOY)
    given = await requests.parse(request, DeploymentRequest)
    if await services_of(request).store.registry.deployment(caller.owner, given.name) is not None:
        described = f"A deployment named {caller.owner}/{given.name} exists already"
        raise InvalidInput([FieldProblem("unique", "name", described)])
    release = Release(
        owner=caller.owner,
        number=1,
        created_at=round(time.time(), 6),
        created_by=caller.owner,
        **msgspec.structs.asdict(given),
    )
    return await _add_release(release, request, caller)


async def get_deployment(request: Request) -> Response:
    caller = await requests.caller(request, Scope.READ)
    return responses.json(_shown(await _release(request, caller), request))


async def update_deployment(request: Request) -> Response:
    """``PATCH /deployments/{owner}/{name}``: create a new release, unless nothing changes."""
    caller = await requests.caller(request, Scope.RUN, right=Right.DEPLOY)
    current = await _release(request, caller)
    given = await requests.parse(request, DeploymentUpdateRequest)
    changes = {key: value for key, value in msgspec.structs.asdict(given).items() if value is not None}
    wished = msgspec.structs.replace(current, **changes)
    if wished == current:
        return responses.json(_shown(current, request))
    return await _add_release(
        msgspec.structs.replace(wished, number=current.number + 1, created_at=round(time.time(), 6)),
        request,
        caller,
    )


async def delete_deployment(request: Request) -> Response:
    services = services_of(request)
    caller = await requests.caller(request, Scope.RUN, right=Right.DEPLOY)
    release = await _release(request, caller)
    name = release.deployment
    if release.min_instances > 0:
        raise BadRequest(f"Deployment {name} is online: set min_instances to 0 before deleting it.")
    used = await services.store.registry.last_use(name)
    if used is not None and time.time() - used < UNUSED:
        raise BadRequest(f"Deployment {name} was used less than {UNUSED // 60} minutes ago; delete it later.")
    await services.store.registry.remove_deployment(
        release.owner, release.name, audit.event(request, object=name, before=msgspec.to_builtins(release))
    )
    await services.engine.deployed()
    return Response(status_code=204)


async def create_deployment_prediction(request: Request) -> Response:
    caller = await requests.caller(request, Scope.RUN, creates=True)
    release = await _release(request, caller)
    given = await requests.parse(request, PredictionRequest)
    if release.max_instances == 0:
        raise BadRequest(
            f"Deployment {release.deployment} is off: its max_instances is 0; set it to 1 or more."
        )
    return await create_prediction(
        request, caller, _entry(release, request, caller), given, deployment=release.deployment
    )


async def _add_release(release: Release, request: Request, caller: Token) -> Response:
    """Store ``release`` and put it into effect.

    Raises:
        InvalidInput: ``max_instances`` is less than ``min_instances``.
        InvalidVersion: the model has no such version, or the version cannot run.
    """
    services = services_of(request)
    if release.max_instances < release.min_instances:
        described = f"Must be greater than or equal to min_instances, {release.min_instances}"
        raise InvalidInput([FieldProblem("number_gte", "max_instances", described)])
    _entry(release, request, caller)
    services.erasures.refuse_new_data(caller.owner)
    await services.store.registry.add_release(release, _audit_event(request, release))
    await services.engine.deployed()
    return responses.json(_shown(release, request))


def _audit_event(request: Request, release: Release) -> AuditEvent:
    return audit.event(request, object=release.deployment, after=msgspec.to_builtins(release))


def _entry(release: Release, request: Request, caller: Token) -> ServedVersion:
    return services_of(request).catalogue.by_spec(f"{release.model}:{release.version}", caller.access)


async def _release(request: Request, caller: Token) -> Release:
    release = await services_of(request).store.registry.deployment(**request.path_params)
    if release is None or release.owner != caller.owner or not _allowed(release, request, caller):
        raise NotFound
    return release


def _allowed(release: Release, request: Request, caller: Token) -> bool:
    """Return whether the caller may use the deployment's model, which may be named by an alias."""
    if not caller.access.restricted:
        return True
    try:
        services_of(request).catalogue.card(release.model, caller.access)
    except NotFound:
        return False
    return True


def _shown(release: Release, request: Request) -> DeploymentResponse:
    return serializers.release(release, account_response(release.created_by, request))


_DEPLOYMENT: Final = "/v1/deployments/{owner}/{name}"
ROUTES: Final = (
    Route(f"{_DEPLOYMENT}/predictions", create_deployment_prediction, methods=["POST"]),
    Route("/v1/deployments", list_deployments, methods=["GET"]),
    Route("/v1/deployments", create_deployment, methods=["POST"]),
    Route(_DEPLOYMENT, get_deployment, methods=["GET"]),
    Route(_DEPLOYMENT, update_deployment, methods=["PATCH"]),
    Route(_DEPLOYMENT, delete_deployment, methods=["DELETE"]),
)
