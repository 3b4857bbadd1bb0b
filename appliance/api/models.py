"""Models and their versions: list and get."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance import wire
from appliance.api import answers, requests
from appliance.api.services import Services
from appliance.catalogue import Entry
from appliance.errors import NotFound
from appliance.token import Scope


class Models:
    """The routes about models. An alias is answered with the model that stands behind it."""

    def __init__(self, services: Services) -> None:
        """``services`` is what they work with."""
        self._services = services

    def routes(self) -> list[Route]:
        """What this resource answers."""
        model = "/v1/models/{owner}/{name}"
        return [
            Route("/v1/models", self.list, methods=["GET"]),
            Route(model, self.get, methods=["GET"]),
            Route(f"{model}/versions", self.versions, methods=["GET"]),
            Route(f"{model}/versions/{{id}}", self.version, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        """``GET /models``: the public ones, newest version first, on one page."""
        await requests.caller(request, self._services, Scope.READ)
        counts = await self._services.store.run_counts()
        public = [entry for entry in self._services.catalogue.entries if entry.model.visibility == "public"]
        public.sort(key=lambda entry: entry.created_at, reverse=True)
        return answers.json(wire.page([self._shown(entry, counts, request) for entry in public]))

    async def get(self, request: Request) -> Response:
        """``GET /models/{owner}/{name}``."""
        entry = await self._entry(request)
        return answers.json(self._shown(entry, await self._services.store.run_counts(), request))

    async def versions(self, request: Request) -> Response:
        """``GET /models/{owner}/{name}/versions``: every version it ever had, newest first."""
        entry = await self._entry(request)
        rows = await self._services.store.versions(entry.name)
        # The one that is served comes first, also when an older state of models.yaml has come back.
        rows = sorted(rows, key=lambda row: row.id != entry.version)
        return answers.json(wire.page([wire.version(row.id, row.created_at, row.document) for row in rows]))

    async def version(self, request: Request) -> Response:
        """``GET /models/{owner}/{name}/versions/{id}``."""
        entry = await self._entry(request)
        row = await self._services.store.version(request.path_params["id"], entry.name)
        if row is None:
            raise NotFound
        return answers.json(wire.version(row.id, row.created_at, row.document))

    async def _entry(self, request: Request) -> Entry:
        await requests.caller(request, self._services, Scope.READ)
        return self._services.catalogue.resolve("{owner}/{name}".format(**request.path_params))

    def _shown(self, entry: Entry, counts: dict[str, int], request: Request) -> dict[str, Any]:
        latest = wire.version(entry.version, entry.created_at, entry.document)
        base = requests.origin(request, self._services)
        return wire.model(entry.model, latest, counts.get(entry.name, 0), base)
