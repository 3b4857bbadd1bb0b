"""Routes for predictions."""

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
from appliance.gateway.api.services import services_of
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.protocols import serializers
from appliance.protocols.request_types import PredictionRequest, VersionPredictionRequest

_VERSION: Final = re.compile(r"[0-9a-f]{64}")


class _VersionAlsoInBody(PredictionRequest, kw_only=True):
    version: Any = None


async def create_version_prediction(request: Request) -> Response:
    """``POST /predictions``: ``version`` is a version id, ``owner/name`` or ``owner/name:version``."""
    caller = await requests.caller(request, Scope.RUN, creates=True)
    given = await requests.parse(request, VersionPredictionRequest)
    entry = services_of(request).catalogue.by_spec(given.version, caller.access)
    return await create_prediction(request, caller, entry, given)


async def create_model_prediction(request: Request) -> Response:
    caller = await requests.caller(request, Scope.RUN, creates=True)
    entry = services_of(request).catalogue.resolve(requests.model_name(request), caller.access)
    given = await requests.parse(request, PredictionRequest)
    return await create_prediction(request, caller, entry, given)


async def create_prediction_at_version(request: Request) -> Response:
    """``POST /models/{version id}/predictions``, the URL that LiteLLM calls for ``owner/name:version``."""
    caller = await requests.caller(request, Scope.RUN, creates=True)
    version = request.path_params["version"]
    entry = services_of(request).catalogue.by_spec(
        version if _VERSION.fullmatch(version) else "", caller.access
    )
    given = await requests.parse(request, _VersionAlsoInBody)
    return await create_prediction(request, caller, entry, given)


async def get_prediction(request: Request) -> Response:
    caller = await requests.caller(request, Scope.READ)
    record = await services_of(request).engine.get(request.path_params["id"], caller.owner)
    return await _response(record, request)


async def cancel_prediction(request: Request) -> Response:
    """``POST /predictions/{id}/cancel``: no effect on a prediction that has ended."""
    caller = await requests.caller(request, Scope.RUN)
    record = await services_of(request).engine.cancel(request.path_params["id"], caller.owner)
    return await _response(record, request)


async def list_predictions(request: Request) -> Response:
    """``GET /predictions``: newest first, a hundred at a time; ``parent``: only those that it created."""
    caller = await requests.caller(request, Scope.READ)
    return await paging.of_predictions(request, caller.owner, serializers.listed)


async def _response(record: Prediction, request: Request) -> Response:
    # Trainings too: Replicate's response to a new training contains a prediction's URL.
    base = requests.base_url(request)
    body = serializers.prediction_or_training(record, base)
    body.parts = await services_of(request).engine.children_of(record) or UNSET
    return responses.json(body, base=base)


async def create_prediction(
    request: Request,
    caller: Token,
    entry: ServedVersion,
    given: PredictionRequest,
    *,
    deployment: str | None = None,
) -> Response:
    """Create the prediction that ``given`` describes, and wait for its end if ``Prefer`` requests that."""
    services = services_of(request)
    wait = requests.wait(request)
    base = requests.base_url(request)
    services.erasures.refuse_new_data(caller.owner)
    record = await services.engine.submit(
        entry,
        given.input,
        owner=caller.owner,
        deadline=requests.deadline(request),
        webhook=webhooks.webhook(request, given),
        deployment=deployment,
        parent=caller.prediction,
        token=caller.id,
        access=caller.access,
        trace=requests.trace(request),
        awaits_end=wait is not None,
    )
    requests.warn_of_budgets(request, record)
    headers = {"Location": f"{base}/v1/predictions/{record.id}"}
    if wait is None:
        return responses.json(serializers.accepted(record, base), 201, headers)
    headers["Preference-Applied"] = wait.applied
    # A client that disconnects meanwhile leaves the prediction running: only a cancel request ends it.
    waited = await services.engine.wait(record.id, wait.patience)
    record = record if waited is None else waited
    status = 201 if record.status.terminal else 202
    return responses.json(serializers.accepted(record, base), status, headers, base=base)


ROUTES: Final = (
    Route("/v1/models/{owner}/{name}/predictions", create_model_prediction, methods=["POST"]),
    Route("/v1/predictions", create_version_prediction, methods=["POST"]),
    Route("/v1/predictions", list_predictions, methods=["GET"]),
    Route("/v1/predictions/{id}", get_prediction, methods=["GET"]),
    Route("/v1/predictions/{id}/cancel", cancel_prediction, methods=["POST"]),
    Route("/v1/models/{version}/predictions", create_prediction_at_version, methods=["POST"]),
)
