"""Models and their versions: list and get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from appliance import wire
from appliance.api import answers, requests
from appliance.api.services import Services
from appliance.catalogue import Entry
from appliance.errors import FieldProblem, InvalidInput, NotFound
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
            Route("/v1/models", self.query, methods=["QUERY"]),
            Route(model, self.get, methods=["GET"]),
            Route(f"{model}/readme", self.readme, methods=["GET"]),
            Route(f"{model}/examples", self.examples, methods=["GET"]),
            Route(f"{model}/versions", self.versions, methods=["GET"]),
            Route(f"{model}/versions/{{id}}", self.version, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        """``GET /models``: the public ones on one page, newest version first unless asked otherwise."""
        await requests.caller(request, self._services, Scope.READ)
        # A model is as old as its version: what is served comes from one file, which knows no other time.
        _one_of(request, "sort_by", ("model_created_at", "latest_version_created_at"))
        ascending = _one_of(request, "sort_direction", ("asc", "desc")) == "asc"
        public = self._services.catalogue.public
        return await self._page(public[::-1] if ascending else public, request)

    async def query(self, request: Request) -> Response:
        """``QUERY /models``: what the body describes, best first.

        The body is text, or a JSON string: every client sends another of the two, under either content type.
        """
        await requests.caller(request, self._services, Scope.READ)
        text = await requests.text_body(request, self._services.config.limits.body)
        return await self._page([entry for entry, _ in self._services.catalogue.search(text)], request)

    async def readme(self, request: Request) -> Response:
        """``GET /models/{owner}/{name}/readme``: Markdown."""
        entry = await self._entry(request)
        if entry.readme is None:
            raise NotFound
        return PlainTextResponse(entry.readme)

    async def examples(self, request: Request) -> Response:
        """``GET /models/{owner}/{name}/examples``: an empty page; the appliance keeps none."""
        await self._entry(request)
        return answers.json(wire.page([]))

    async def get(self, request: Request) -> Response:
        """``GET /models/{owner}/{name}``."""
        entry = await self._entry(request)
        return answers.json(shown(entry, await self._services.store.run_counts(), request, self._services))

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

    async def _page(self, entries: Sequence[Entry], request: Request) -> Response:
        counts = await self._services.store.run_counts()
        return answers.json(wire.page([shown(entry, counts, request, self._services) for entry in entries]))

    async def _entry(self, request: Request) -> Entry:
        await requests.caller(request, self._services, Scope.READ)
        return self._services.catalogue.resolve("{owner}/{name}".format(**request.path_params))


def shown(entry: Entry, counts: dict[str, int], request: Request, services: Services) -> dict[str, Any]:
    """A model as every list shows it; ``counts`` is how often each model was run."""
    latest = wire.version(entry.version, entry.created_at, entry.document)
    return wire.model(entry.model, latest, counts.get(entry.name, 0), requests.origin(request, services))


def _one_of(request: Request, key: str, choices: tuple[str, ...]) -> str | None:
    """A query parameter that knows few values.

    Raises:
        InvalidInput: it has another.
    """
    value = request.query_params.get(key)
    if value is None or value in choices:
        return value
    described = ", ".join(f'"{choice}"' for choice in choices)
    raise InvalidInput([FieldProblem("enum", key, f"{key} must be one of the following: {described}")])
