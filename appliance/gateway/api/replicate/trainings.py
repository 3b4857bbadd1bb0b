"""Routes for trainings. A training is stored as a prediction, made by the model's trainer."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.access import Right
from appliance.domain.errors import (
    BadRequest,
    DestinationNotFound,
    InvalidVersion,
    NotFound,
    PermissionDenied,
)
from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope, Token
from appliance.gateway.api import paging, requests, responses
from appliance.gateway.api.replicate import webhooks
from appliance.gateway.api.replicate.models import require_own
from appliance.gateway.api.services import services_of
from appliance.gateway.catalogue.catalogue import Catalogue
from appliance.protocols import serializers
from appliance.protocols.request_types import TrainingRequest


async def create_training(request: Request) -> Response:
    services = services_of(request)
    caller = await requests.caller(request, Scope.RUN, creates=True, right=Right.TRAIN)
    given = await requests.parse(request, TrainingRequest)
    catalogue = services.catalogue
    base = catalogue.by_spec(f"{requests.model_name(request)}:{request.path_params['id']}", caller.access)
    trainer = catalogue.trainer(base.version)
    if trainer is None:
        raise InvalidVersion
    destination = _destination(given.destination, caller, catalogue)
    origin = requests.base_url(request)
    services.erasures.refuse_new_data(caller.owner)
    record = await services.engine.submit(
        trainer,
        given.input,
        owner=caller.owner,
        deadline=requests.deadline(request),
        webhook=webhooks.webhook(request, given),
        destination=destination,
        parent=caller.prediction,
        token=caller.id,
        access=caller.access,
        trace=requests.trace(request),
    )
    requests.warn_of_budgets(request, record)
    headers = {"Location": f"{origin}/v1/trainings/{record.id}"}
    return responses.json(serializers.training(record, origin), 201, headers)


async def get_training(request: Request) -> Response:
    caller = await requests.caller(request, Scope.READ)
    return _response(await _training(request, caller), request)


async def cancel_training(request: Request) -> Response:
    """``POST /trainings/{id}/cancel``: no effect on a training that has ended."""
    caller = await requests.caller(request, Scope.RUN)
    record = await _training(request, caller)
    return _response(await services_of(request).engine.cancel(record.id, caller.owner), request)


async def list_trainings(request: Request) -> Response:
    caller = await requests.caller(request, Scope.READ)
    return await paging.of_predictions(request, caller.owner, serializers.training, training=True)


async def _training(request: Request, caller: Token) -> Prediction:
    record = await services_of(request).engine.get(request.path_params["id"], caller.owner)
    if record.destination is None:
        raise NotFound
    return record


def _response(record: Prediction, request: Request) -> Response:
    base = requests.base_url(request)
    return responses.json(serializers.training(record, base), base=base)


def _destination(name: str, caller: Token, catalogue: Catalogue) -> str:
    """Return the name of the model that gets the new version.

    Raises:
        DestinationNotFound: the caller has no such model.
        BadRequest: the model is defined in models.yaml.
    """
    try:
        return require_own(catalogue.card(name, caller.access), caller).name
    except (NotFound, PermissionDenied) as error:
        raise DestinationNotFound from error
    except BadRequest as error:
        raise BadRequest(
            f"Model {name} is defined in models.yaml and takes no trained versions; "
            "create a destination with POST /v1/models."
        ) from error


ROUTES: Final = (
    Route("/v1/models/{owner}/{name}/versions/{id}/trainings", create_training, methods=["POST"]),
    Route("/v1/trainings", list_trainings, methods=["GET"]),
    Route("/v1/trainings/{id}", get_training, methods=["GET"]),
    Route("/v1/trainings/{id}/cancel", cancel_training, methods=["POST"]),
)
