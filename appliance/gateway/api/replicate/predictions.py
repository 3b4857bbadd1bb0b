"""Predictions: create, get, list, cancel."""

from __future__ import annotations

import re
from typing import Any, Final

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope, Token
from appliance.gateway.api import paging, requests, responses
from appliance.gateway.api.replicate import webhooks
from appliance.gateway.api.services import Services
from appliance.gateway.catalogue.catalogue import Entry
from appliance.protocols import serializers
from appliance.protocols.response_types import PredictionResponse

_VERSION: Final = re.compile(r"[0-9a-f]{64}")


class Predictions:
    """The routes about predictions."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes of this resource, most used first."""
        return [
            Route("/v1/models/{owner}/{name}/predictions", self.create_for_model, methods=["POST"]),
            Route("/v1/predictions", self.create, methods=["POST"]),
            Route("/v1/predictions", self.list, methods=["GET"]),
            Route("/v1/predictions/{id}", self.get, methods=["GET"]),
            Route("/v1/predictions/{id}/cancel", self.cancel, methods=["POST"]),
            Route("/v1/models/{version}/predictions", self.create_for_version, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /predictions``: ``version`` is a version id, ``owner/name`` or ``owner/name:version``."""
        caller = await requests.caller(request, self._services, Scope.RUN, creates=True)
        given = await self._body(request)
        requests.check_keys(given, required=("version", "input"))
        entry = self._services.catalogue.by_spec(requests.text(given, "version"), caller.owner)
        return await create_prediction(request, self._services, caller, entry, given)

    async def create_for_model(self, request: Request) -> Response:
        """``POST /models/{owner}/{name}/predictions``."""
        caller = await requests.caller(request, self._services, Scope.RUN, creates=True)
        entry = self._services.catalogue.resolve("{owner}/{name}".format(**request.path_params), caller.owner)
        given = await self._body(request)
        requests.check_keys(given, required=("input",))
        return await create_prediction(request, self._services, caller, entry, given)

    async def create_for_version(self, request: Request) -> Response:
        """``POST /models/{version id}/predictions``, which LiteLLM makes of ``owner/name:version``."""
        caller = await requests.caller(request, self._services, Scope.RUN, creates=True)
        version = request.path_params["version"]
        entry = self._services.catalogue.by_spec(version if _VERSION.fullmatch(version) else "", caller.owner)
        given = await self._body(request)
        requests.check_keys(given, required=("input",), optional=("version",))
        return await create_prediction(request, self._services, caller, entry, given)

    async def get(self, request: Request) -> Response:
        """``GET /predictions/{id}``."""
        caller = await requests.caller(request, self._services, Scope.READ)
        record = await self._services.engine.get(request.path_params["id"], caller.owner)
        return responses.json(await self._shown(record, request), base=self._base(request))

    async def cancel(self, request: Request) -> Response:
        """``POST /predictions/{id}/cancel``; one that is over is answered as it is."""
        caller = await requests.caller(request, self._services, Scope.RUN)
        record = await self._services.engine.cancel(request.path_params["id"], caller.owner)
        return responses.json(await self._shown(record, request), base=self._base(request))

    async def list(self, request: Request) -> Response:
        """``GET /predictions``: newest first, a hundred at a time; ``parent``: what that one asked for."""
        caller = await requests.caller(request, self._services, Scope.READ)
        return await paging.of_predictions(request, self._services, caller.owner, serializers.listed)

    async def _shown(self, record: Prediction, request: Request) -> PredictionResponse:
        """Trainings too: recorded Replicate responses give a new training a prediction's URL."""
        response = serializers.prediction_or_training(record, self._base(request))
        response.parts = await self._services.engine.children_of(record) or UNSET
        return response

    async def _body(self, request: Request) -> dict[str, Any]:
        return await requests.body(request, self._services.config.limits.body)

    def _base(self, request: Request) -> str:
        return requests.origin(request, self._services)


async def create_prediction(
    request: Request,
    services: Services,
    caller: Token,
    entry: Entry,
    given: dict[str, Any],
    *,
    deployment: str | None = None,
) -> Response:
    """Create the prediction that the body ``given`` describes, and wait for it as ``Prefer`` says."""
    wait = requests.wait(request)
    base = requests.origin(request, services)
    record = await services.engine.submit(
        entry,
        given["input"],
        owner=caller.owner,
        deadline=requests.deadline(request),
        webhook=webhooks.webhook(given, base, services),
        deployment=deployment,
        parent=caller.prediction,
        token=caller.id,
        trace=requests.trace(request, services),
    )
    headers = {"Location": f"{base}/v1/predictions/{record.id}"}
    if wait is None:
        return responses.json(serializers.accepted(record, base), 201, headers)
    headers["Preference-Applied"] = wait.applied
    # A client that disconnects meanwhile leaves the prediction running: only a cancel request ends it.
    waited = await services.engine.wait(record.id, wait.patience)
    record = record if waited is None else waited
    status = 201 if record.status.terminal else 202
    return responses.json(serializers.accepted(record, base), status, headers, base=base)
