"""Examples: predictions chosen to show what a model can do. Replicate has no route to choose them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import BadRequest, NotFound
from appliance.domain.prediction import Status
from appliance.domain.token import Scope
from appliance.gateway.api import requests
from appliance.gateway.api.services import Services
from appliance.gateway.catalogue.catalogue import Card


class Examples:
    """The routes with which examples are chosen; ``Models`` shows them."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        example = "/admin/models/{owner}/{name}/examples/{id}"
        return [
            Route(example, self.add, methods=["PUT"]),
            Route(example, self.remove, methods=["DELETE"]),
        ]

    async def add(self, request: Request) -> Response:
        """``PUT /admin/models/{owner}/{name}/examples/{id}``: whoever sees the model sees it from now on."""
        card = await self._card(request)
        record = await self._services.store.get(request.path_params["id"])
        if record is None or record.model != card.name:
            raise NotFound
        if record.status is not Status.SUCCEEDED or record.data_removed:
            raise BadRequest(f"Prediction {record.id} has nothing to show: it is {record.status}.")
        await self._services.store.registry.add_example(card.name, record.id)
        return Response(status_code=204)

    async def remove(self, request: Request) -> Response:
        """``DELETE /admin/models/{owner}/{name}/examples/{id}``: done also when it was none."""
        card = await self._card(request)
        await self._services.store.registry.remove_example(card.name, request.path_params["id"])
        return Response(status_code=204)

    async def _card(self, request: Request) -> Card:
        await requests.caller(request, self._services, Scope.ADMIN)
        return self._services.catalogue.card("{owner}/{name}".format(**request.path_params))
