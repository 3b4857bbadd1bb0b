"""Models: list, search, get; and those that are made through the API: create, update, delete."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.errors import BadRequest, FieldProblem, InvalidInput, NotFound, PermissionDenied
from appliance.domain.model import Model
from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope, Token
from appliance.gateway.api import paging, requests, responses
from appliance.gateway.api.services import Services
from appliance.gateway.catalogue.catalogue import Card
from appliance.protocols import serializers
from appliance.protocols.response_types import ModelResponse
from appliance.store import Cursor

PAGE: Final = 25  # models on a page, as on Replicate
_TEXT: Final = {"type": "string", "maxLength": 1_000_000}
#: Any text, as on Replicate, except URLs that a page must not link to (javascript:).
_ADDRESS: Final = {
    "type": "string",
    "pattern": r"^([Hh][Tt][Tt][Pp][Ss]?:|[^:/?#]*([/?#]|$))",
    "maxLength": 2000,
}
_ADDRESSES: Final = dict.fromkeys(("github_url", "paper_url", "license_url"), _ADDRESS)
_PART: Final = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", "maxLength": 100}
_NEW: Final[dict[str, dict[str, Any]]] = {
    "owner": _PART,
    "name": _PART,
    "visibility": {"type": "string", "enum": ["public", "private"]},
    "hardware": {"type": "string", "maxLength": 2000},
    "description": _TEXT,
    "cover_image_url": _ADDRESS,
    **_ADDRESSES,
}
_CHANGES: Final = {"description": _TEXT, "readme": _TEXT, "weights_url": _ADDRESS, **_ADDRESSES}


class Models:
    """The routes about models. An alias is answered with the model that stands behind it."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        model = "/v1/models/{owner}/{name}"
        return [
            Route("/v1/models", self.list, methods=["GET"]),
            Route("/v1/models", self.query, methods=["QUERY"]),
            Route("/v1/models", self.create, methods=["POST"]),
            Route(model, self.get, methods=["GET"]),
            Route(model, self.update, methods=["PATCH"]),
            Route(model, self.delete, methods=["DELETE"]),
            Route(f"{model}/readme", self.readme, methods=["GET"]),
            Route(f"{model}/examples", self.examples, methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        """``GET /models``: a page of the public models, by default sorted by newest version."""
        await requests.caller(request, self._services, Scope.READ)
        by = requests.one_of(request, "sort_by", ("model_created_at", "latest_version_created_at"))
        ascending = requests.one_of(request, "sort_direction", ("asc", "desc")) == "asc"
        public = self._services.catalogue.public()
        if by == "model_created_at":
            public = sorted(public, key=lambda card: card.created_at, reverse=True)
        return await self._page(public[::-1] if ascending else public, request)

    async def query(self, request: Request) -> Response:
        """``QUERY /models``: what the body describes, best first.

        The body is text, or a JSON string: every client sends another of the two, under either content type.
        """
        await requests.caller(request, self._services, Scope.READ)
        text = await requests.text_body(request, self._services.config.limits.body)
        return await self._page([card for card, _ in self._services.catalogue.search(text)], request)

    async def create(self, request: Request) -> Response:
        """``POST /models``: a model without a version yet; trainings make those."""
        caller = await requests.caller(request, self._services, Scope.RUN)
        given = await requests.body(request, self._services.config.limits.body)
        input_schema.check(given, _NEW, ("owner", "name", "visibility", "hardware"))
        if given["owner"] != caller.owner:
            raise PermissionDenied(
                f'This token is of the account "{caller.owner}"; it cannot make models of "{given["owner"]}".'
            )
        owner, short = given.pop("owner"), given.pop("name")
        name = f"{owner}/{short}"
        try:
            self._services.catalogue.card(name)
        except NotFound:
            pass
        else:
            raise InvalidInput([FieldProblem("unique", "name", f"A model named {name} exists already")])
        model = Model(name=name, created_at=round(time.time(), 6), **given)
        # In the catalogue first, so that a second request for the same name is refused while this is stored.
        card = self._services.catalogue.put(model)
        try:
            await self._services.store.registry.add_model(model)
        except BaseException:
            self._services.catalogue.remove(name)
            raise
        return responses.json(await self._shown(card, request), 201)

    async def get(self, request: Request) -> Response:
        """``GET /models/{owner}/{name}``."""
        return responses.json(
            await self._shown(await self._card(request), request),
            base=requests.origin(request, self._services),
        )

    async def update(self, request: Request) -> Response:
        """``PATCH /models/{owner}/{name}``: what is said of it."""
        caller = await requests.caller(request, self._services, Scope.RUN)
        card = self._own(request, caller)
        given = await requests.body(request, self._services.config.limits.body)
        input_schema.check(given, _CHANGES)
        model = msgspec.structs.replace(await self._stored(card.name), **given)
        await self._services.store.registry.update_model(model)
        return responses.json(await self._shown(self._services.catalogue.put(model), request))

    async def delete(self, request: Request) -> Response:
        """``DELETE /models/{owner}/{name}``: one's own, private, without versions."""
        caller = await requests.caller(request, self._services, Scope.RUN)
        card = self._own(request, caller)
        if card.visibility != "private":
            raise BadRequest(f"Model {card.name} is public; only private models can be deleted.")
        if await self._services.store.versions(card.name):
            raise BadRequest(f"Model {card.name} has versions; delete them first.")
        await self._services.store.registry.remove_model(card.name)
        self._services.catalogue.remove(card.name)
        return Response(status_code=204)

    async def readme(self, request: Request) -> Response:
        """``GET /models/{owner}/{name}/readme``: Markdown."""
        card = await self._card(request)
        if card.readme is None:
            raise NotFound
        return PlainTextResponse(card.readme)

    async def examples(self, request: Request) -> Response:
        """``GET /models/{owner}/{name}/examples``: predictions that were chosen to show what it can do."""
        card = await self._card(request)
        base = requests.origin(request, self._services)
        chosen = (await self._services.store.registry.examples()).get(card.name, [])
        found = [await self._services.store.get(id) for id in chosen]
        return responses.json(
            serializers.page(
                [serializers.prediction(record, base) for record in found if record is not None]
            ),
            base=base,
        )

    async def _page(self, cards: Sequence[Card], request: Request) -> Response:
        listing = await Listing.of(self._services)
        base = requests.origin(request, self._services)
        given = request.query_params.get("cursor")
        cursor = paging.decode(given) if given else None
        begin, end = paging.window(cursor, [card.name for card in cards], PAGE)
        shown = cards[begin:end]

        def link(place: int, *, back: bool) -> str:
            return paging.address(request, base, Cursor(place, cards[place].name, back))

        body = serializers.page(
            [listing.shown(card, base) for card in shown],
            next=link(begin + len(shown) - 1, back=False) if shown and end < len(cards) else None,
            previous=link(begin, back=True) if shown and begin else None,
        )
        return responses.json(body, base=base)

    async def _shown(self, card: Card, request: Request) -> ModelResponse:
        return (await Listing.of(self._services)).shown(card, requests.origin(request, self._services))

    async def _card(self, request: Request) -> Card:
        caller = await requests.caller(request, self._services, Scope.READ)
        return self._services.catalogue.card("{owner}/{name}".format(**request.path_params), caller.owner)

    def _own(self, request: Request, caller: Token) -> Card:
        return own(
            self._services.catalogue.card("{owner}/{name}".format(**request.path_params), caller.owner),
            caller,
        )

    async def _stored(self, name: str) -> Model:
        for model in await self._services.store.registry.models():
            if model.name == name:
                return model
        raise NotFound


def own(card: Card, caller: Token) -> Card:
    """``card``, which ``caller`` may change.

    Raises:
        PermissionDenied: it is another account's.
        BadRequest: it is in models.yaml.
    """
    if card.kind is not None:
        raise BadRequest(f"Model {card.name} is defined in models.yaml on the server; change it there.")
    if card.owner != caller.owner:
        raise PermissionDenied(f'Model {card.name} is of the account "{card.owner}".')
    return card


class Listing:
    """Details of a model in lists: number of runs, newest version, first example."""

    def __init__(self, services: Services, counts: dict[str, int], examples: dict[str, Prediction]) -> None:
        """Made by ``of``."""
        self._catalogue = services.catalogue
        self._counts = counts
        self._examples = examples

    @classmethod
    async def of(cls, services: Services) -> Listing:
        """As everything is now."""
        chosen = await services.store.registry.examples()
        found = {model: await services.store.get(ids[0]) for model, ids in chosen.items()}
        examples = {model: record for model, record in found.items() if record is not None}
        return cls(services, await services.store.run_counts(), examples)

    def shown(self, card: Card, base: str) -> ModelResponse:
        """A model as every list shows it."""
        latest = self._catalogue.latest(card.name)
        example = self._examples.get(card.name)
        owner, name = card.name.split("/")
        return ModelResponse(
            url=f"{base}/{card.name}",
            owner=owner,
            name=name,
            description=card.description or None,
            visibility=card.visibility,
            is_official=False,
            created_at=serializers.timestamp(card.created_at),
            github_url=card.github_url,
            paper_url=card.paper_url,
            license_url=card.license_url,
            weights_url=card.weights_url,
            cover_image_url=card.cover_image_url,
            run_count=self._counts.get(card.name, 0),
            default_example=None if example is None else serializers.prediction(example, base),
            latest_version=None
            if latest is None
            else serializers.version(latest.version, latest.created_at, latest.document),
        )
