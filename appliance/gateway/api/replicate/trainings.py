"""Trainings: create, get, list, cancel. A training is a prediction of a trainer, and stored as one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import (
    BadRequest,
    DestinationNotFound,
    InvalidVersion,
    NotFound,
    PermissionDenied,
)
from appliance.domain.token import Scope, Token
from appliance.gateway.api import paging, requests, responses
from appliance.gateway.api.replicate import webhooks
from appliance.gateway.api.replicate.models import own
from appliance.gateway.api.services import Services
from appliance.protocols import serializers


class Trainings:
    """The routes about trainings."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        return [
            Route("/v1/models/{owner}/{name}/versions/{id}/trainings", self.create, methods=["POST"]),
            Route("/v1/trainings", self.list, methods=["GET"]),
            Route("/v1/trainings/{id}", self.get, methods=["GET"]),
            Route("/v1/trainings/{id}/cancel", self.cancel, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /models/{owner}/{name}/versions/{id}/trainings``."""
        caller = await requests.caller(request, self._services, Scope.RUN, creates=True)
        given = await requests.body(request, self._services.config.limits.body)
        requests.check_keys(given, required=("destination", "input"), optional=("version",))
        catalogue = self._services.catalogue
        name = "{owner}/{name}".format(**request.path_params)
        base = catalogue.by_spec(f"{name}:{request.path_params['id']}", caller.owner)
        trainer = catalogue.trainer(base.version)
        if trainer is None:
            raise InvalidVersion
        destination = self._destination(requests.text(given, "destination"), caller)
        origin = requests.origin(request, self._services)
        record = await self._services.engine.submit(
            trainer,
            given["input"],
            owner=caller.owner,
            deadline=requests.deadline(request),
            webhook=webhooks.webhook(given, origin, self._services),
            destination=destination,
            parent=caller.prediction,
            token=caller.id,
            trace=requests.trace(request, self._services),
        )
        headers = {"Location": f"{origin}/v1/trainings/{record.id}"}
        return responses.json(serializers.training(record, origin), 201, headers)

    async def get(self, request: Request) -> Response:
        """``GET /trainings/{id}``."""
        caller = await requests.caller(request, self._services, Scope.READ)
        record = await self._services.engine.get(request.path_params["id"], caller.owner)
        if record.destination is None:
            raise NotFound
        base = requests.origin(request, self._services)
        return responses.json(serializers.training(record, base), base=base)

    async def cancel(self, request: Request) -> Response:
        """``POST /trainings/{id}/cancel``; one that is over is answered as it is."""
        caller = await requests.caller(request, self._services, Scope.RUN)
        record = await self._services.engine.get(request.path_params["id"], caller.owner)
        if record.destination is None:
            raise NotFound
        record = await self._services.engine.cancel(record.id, caller.owner)
        base = requests.origin(request, self._services)
        return responses.json(serializers.training(record, base), base=base)

    async def list(self, request: Request) -> Response:
        """``GET /trainings``: newest first, a hundred at a time."""
        caller = await requests.caller(request, self._services, Scope.READ)
        return await paging.of_predictions(
            request, self._services, caller.owner, serializers.training, training=True
        )

    def _destination(self, name: str, caller: Token) -> str:
        """The model that gets the new version.

        Raises:
            DestinationNotFound: there is no such model of the caller's.
            BadRequest: it is in models.yaml.
        """
        try:
            return own(self._services.catalogue.card(name, caller.owner), caller).name
        except (NotFound, PermissionDenied) as error:
            raise DestinationNotFound from error
        except BadRequest as error:
            raise BadRequest(
                f"Model {name} is defined in models.yaml and takes no trained versions; "
                "make a destination with POST /v1/models."
            ) from error
