"""Routes that add and remove the example predictions of a model."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import BadRequest, NotFound
from appliance.domain.prediction import Status
from appliance.domain.token import Scope
from appliance.gateway.api import audit, requests
from appliance.gateway.api.services import services_of
from appliance.gateway.catalogue.catalogue import ModelCard


async def add_example(request: Request) -> Response:
    """``PUT /admin/models/{owner}/{name}/examples/{id}``: shows the prediction to all who see the model."""
    services = services_of(request)
    card = await _card(request)
    record = await services.store.get(request.path_params["id"])
    if record is None or record.model != card.name:
        raise NotFound
    if record.status is not Status.SUCCEEDED or record.data_removed:
        reason = "its output was removed" if record.data_removed else f"it is {record.status}"
        raise BadRequest(f"Prediction {record.id} cannot be an example: {reason}.")
    await services.store.registry.add_example(card.name, record.id, audit.event(request))
    return Response(status_code=204)


async def remove_example(request: Request) -> Response:
    """``DELETE /admin/models/{owner}/{name}/examples/{id}``: no effect unless it is an example."""
    card = await _card(request)
    await services_of(request).store.registry.remove_example(
        card.name, request.path_params["id"], audit.event(request)
    )
    return Response(status_code=204)


async def _card(request: Request) -> ModelCard:
    caller = await requests.caller(request, Scope.ADMIN)
    return services_of(request).catalogue.card(requests.model_name(request), caller.access.of_all_accounts())


_EXAMPLE: Final = "/admin/models/{owner}/{name}/examples/{id}"
ROUTES: Final = (
    Route(_EXAMPLE, add_example, methods=["PUT"]),
    Route(_EXAMPLE, remove_example, methods=["DELETE"]),
)
