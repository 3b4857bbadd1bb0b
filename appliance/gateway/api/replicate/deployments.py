"""Deployments: a name of one's own for one version of a model; and the predictions made through them."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.deployment import Release
from appliance.domain.errors import BadRequest, FieldProblem, InvalidInput, NotFound
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.replicate.account import account_name
from appliance.gateway.api.replicate.predictions import create_prediction
from appliance.gateway.api.services import Services
from appliance.gateway.catalogue.catalogue import Entry
from appliance.protocols import serializers
from appliance.protocols.response_types import DeploymentResponse

#: Seconds that a deployment must not have been used for before it can be deleted.
UNUSED: Final = 15 * 60
_NEW: Final[dict[str, dict[str, Any]]] = {
    "name": {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", "maxLength": 100},
    "model": {"type": "string"},
    "version": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "hardware": {"type": "string", "maxLength": 2000},
    "min_instances": {"type": "integer", "minimum": 0, "maximum": 5},
    "max_instances": {"type": "integer", "minimum": 0, "maximum": 20},
}
_CHANGES: Final = {key: value for key, value in _NEW.items() if key != "name"}


class Deployments:
    """The routes about deployments."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._registry = services.store.registry

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        deployment = "/v1/deployments/{owner}/{name}"
        return [
            Route(f"{deployment}/predictions", self.predict, methods=["POST"]),
            Route("/v1/deployments", self.list, methods=["GET"]),
            Route("/v1/deployments", self.create, methods=["POST"]),
            Route(deployment, self.get, methods=["GET"]),
            Route(deployment, self.update, methods=["PATCH"]),
            Route(deployment, self.delete, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        """``GET /deployments``: the account's, newest release first."""
        caller = await requests.caller(request, self._services, Scope.READ)
        found = await self._registry.deployments(caller.owner)
        return responses.json(serializers.page([self._shown(release, request) for release in found]))

    async def create(self, request: Request) -> Response:
        """``POST /deployments``: its first release."""
        caller = await requests.caller(request, self._services, Scope.RUN)
        given = await requests.body(request, self._services.config.limits.body)
        input_schema.check(given, _NEW, tuple(_NEW))
        if await self._registry.deployment(caller.owner, given["name"]) is not None:
            described = f"A deployment named {caller.owner}/{given['name']} exists already"
            raise InvalidInput([FieldProblem("unique", "name", described)])
        release = Release(
            owner=caller.owner,
            number=1,
            created_at=round(time.time(), 6),
            created_by=caller.owner,
            **_whole(given),
        )
        return await self._released(release, request)

    async def get(self, request: Request) -> Response:
        """``GET /deployments/{owner}/{name}``."""
        return responses.json(self._shown(await self._release(request, Scope.READ), request))

    async def update(self, request: Request) -> Response:
        """``PATCH /deployments/{owner}/{name}``: a further release, unless nothing changes."""
        current = await self._release(request, Scope.RUN)
        given = await requests.body(request, self._services.config.limits.body)
        input_schema.check(given, _CHANGES)
        wished = msgspec.structs.replace(
            current, **_whole({key: value for key, value in given.items() if value is not None})
        )
        if wished == current:
            return responses.json(self._shown(current, request))
        return await self._released(
            msgspec.structs.replace(wished, number=current.number + 1, created_at=round(time.time(), 6)),
            request,
        )

    async def delete(self, request: Request) -> Response:
        """``DELETE /deployments/{owner}/{name}``: once it is offline and unused."""
        release = await self._release(request, Scope.RUN)
        name = release.deployment
        if release.min_instances > 0:
            raise BadRequest(f"Deployment {name} is online: set min_instances to 0 before deleting it.")
        used = await self._registry.last_use(name)
        if used is not None and time.time() - used < UNUSED:
            raise BadRequest(f"Deployment {name} was used less than {UNUSED // 60} minutes ago.")
        await self._registry.remove_deployment(release.owner, release.name)
        await self._services.engine.deployed()
        return Response(status_code=204)

    async def predict(self, request: Request) -> Response:
        """``POST /deployments/{owner}/{name}/predictions``."""
        caller = await requests.caller(request, self._services, Scope.RUN, creates=True)
        release = await self._registry.deployment(**request.path_params)
        if release is None or release.owner != caller.owner:
            raise NotFound
        given = await requests.body(request, self._services.config.limits.body)
        requests.check_keys(given, required=("input",))
        if release.max_instances == 0:
            raise BadRequest(f"Deployment {release.deployment} is off: its max_instances is 0.")
        return await create_prediction(
            request, self._services, caller, self._entry(release), given, deployment=release.deployment
        )

    async def _released(self, release: Release, request: Request) -> Response:
        """Store ``release`` and let it count.

        Raises:
            InvalidInput: its numbers contradict each other.
            InvalidVersion: its model has no such version that can be run.
        """
        if release.max_instances < release.min_instances:
            described = f"Must be greater than or equal to min_instances, {release.min_instances}"
            raise InvalidInput([FieldProblem("number_gte", "max_instances", described)])
        self._entry(release)
        await self._registry.add_release(release)
        await self._services.engine.deployed()
        return responses.json(self._shown(release, request))

    def _entry(self, release: Release) -> Entry:
        return self._services.catalogue.by_spec(f"{release.model}:{release.version}", release.owner)

    async def _release(self, request: Request, scope: Scope) -> Release:
        caller = await requests.caller(request, self._services, scope)
        release = await self._registry.deployment(**request.path_params)
        if release is None or release.owner != caller.owner:
            raise NotFound
        return release

    def _shown(self, release: Release, request: Request) -> DeploymentResponse:
        by = release.created_by
        return serializers.release(
            release,
            serializers.account(
                by, account_name(by, self._services), requests.origin(request, self._services)
            ),
        )


def _whole(given: dict[str, Any]) -> dict[str, Any]:
    """JSON may write a whole number with a point."""
    return {key: int(value) if isinstance(value, float) else value for key, value in given.items()}
