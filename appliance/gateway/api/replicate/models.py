"""Routes for models. An alias is answered with the model that it stands for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from appliance.domain.access import UNRESTRICTED, Right
from appliance.domain.errors import BadRequest, FieldProblem, InvalidInput, NotFound, PermissionDenied
from appliance.domain.model import Model
from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope, Token
from appliance.gateway.api import audit, paging, requests, responses
from appliance.gateway.api.services import services_of
from appliance.gateway.catalogue.catalogue import Catalogue, ModelCard
from appliance.protocols import serializers
from appliance.protocols.request_types import ModelRequest, ModelUpdateRequest
from appliance.protocols.response_types import ModelResponse
from appliance.store import Cursor, Store

PAGE: Final = 25  # models on a page, as on Replicate


async def list_models(request: Request) -> Response:
    """``GET /models``: a page of the public models, sorted by newest version by default."""
    caller = await requests.caller(request, Scope.READ)
    by = requests.one_of(request, "sort_by", ("model_created_at", "latest_version_created_at"))
    ascending = requests.one_of(request, "sort_direction", ("asc", "desc")) == "asc"
    public = services_of(request).catalogue.public(caller.access)
    if by == "model_created_at":
        public = sorted(public, key=lambda card: card.created_at, reverse=True)
    return await _page(public[::-1] if ascending else public, request)


async def query_models(request: Request) -> Response:
    """``QUERY /models``: the models that match the body, best first.

    The body is plain text or a JSON string, whatever its content type: clients mix these up.
    """
    caller = await requests.caller(request, Scope.READ)
    text = await requests.text_body(request)
    found = services_of(request).catalogue.search(text, caller.access)
    return await _page([card for card, _ in found], request)


async def create_model(request: Request) -> Response:
    services = services_of(request)
    caller = await requests.caller(request, Scope.RUN)
    given = await requests.parse(request, ModelRequest)
    if given.owner != caller.owner:
        raise PermissionDenied(
            f'This token belongs to the account "{caller.owner}"; it cannot create models of "{given.owner}".'
        )
    name = f"{given.owner}/{given.name}"
    if not {Right.PUSH, Right.TRAIN} & caller.access.rights or not caller.access.allows(name):
        raise PermissionDenied(
            f'The account "{caller.owner}" or its token may not create the model {name}: that needs the '
            "right push or train, and a pattern that allows the name, in the section access of models.yaml."
        )
    try:
        services.catalogue.card(name, UNRESTRICTED)
    except NotFound:
        pass
    else:
        raise InvalidInput([FieldProblem("unique", "name", f"A model named {name} exists already")])
    values = msgspec.structs.asdict(given) | {"name": name}
    del values["owner"]
    model = Model(created_at=round(time.time(), 6), **values)
    # The catalogue gets the model first, so that a second request for the same name fails meanwhile.
    card = services.catalogue.put(model)
    try:
        await services.store.registry.add_model(
            model, audit.event(request, object=model.name, after=msgspec.to_builtins(model))
        )
    except BaseException:
        services.catalogue.remove(name)
        raise
    return responses.json(await _shown(card, request), 201)


async def get_model(request: Request) -> Response:
    return responses.json(
        await _shown(await _card(request), request),
        base=requests.base_url(request),
    )


async def update_model(request: Request) -> Response:
    services = services_of(request)
    caller = await requests.caller(request, Scope.RUN)
    card = _own(request, caller)
    given = await requests.parse(request, ModelUpdateRequest)
    changes = {key: value for key, value in msgspec.structs.asdict(given).items() if value is not UNSET}
    model = msgspec.structs.replace(await _stored(card.name, services.store), **changes)
    await services.store.registry.update_model(
        model, audit.event(request, after=msgspec.to_builtins(changes))
    )
    return responses.json(await _shown(services.catalogue.put(model), request))


async def delete_model(request: Request) -> Response:
    services = services_of(request)
    caller = await requests.caller(request, Scope.RUN)
    card = _own(request, caller)
    if card.visibility != "private":
        raise BadRequest(f"Model {card.name} is public; only private models can be deleted.")
    if await services.store.versions(card.name):
        raise BadRequest(f"Model {card.name} has versions; delete them first.")
    await services.store.registry.remove_model(card.name, audit.event(request))
    services.catalogue.remove(card.name)
    return Response(status_code=204)


async def get_readme(request: Request) -> Response:
    card = await _card(request)
    if card.readme is None:
        raise NotFound
    return PlainTextResponse(card.readme)


async def list_examples(request: Request) -> Response:
    """``GET /models/{owner}/{name}/examples``: the predictions that an administrator chose as examples."""
    services = services_of(request)
    card = await _card(request)
    base = requests.base_url(request)
    chosen = (await services.store.registry.examples()).get(card.name, [])
    found = [await services.store.get(id) for id in chosen]
    return responses.json(
        serializers.page([serializers.prediction(record, base) for record in found if record is not None]),
        base=base,
    )


async def _page(cards: Sequence[ModelCard], request: Request) -> Response:
    listing = await ModelDetails.of(request)
    base = requests.base_url(request)
    given = request.query_params.get("cursor")
    cursor = paging.decode(given) if given else None
    begin, end = paging.window(cursor, [card.name for card in cards], PAGE)
    shown = cards[begin:end]

    def link(place: int, *, back: bool) -> str:
        return paging.page_url(request, base, Cursor(place, cards[place].name, back))

    body = serializers.page(
        [listing.shown(card, base) for card in shown],
        next=link(begin + len(shown) - 1, back=False) if shown and end < len(cards) else None,
        previous=link(begin, back=True) if shown and begin else None,
    )
    return responses.json(body, base=base)


async def _shown(card: ModelCard, request: Request) -> ModelResponse:
    return (await ModelDetails.of(request)).shown(card, requests.base_url(request))


async def _card(request: Request) -> ModelCard:
    caller = await requests.caller(request, Scope.READ)
    return services_of(request).catalogue.card(requests.model_name(request), caller.access)


def _own(request: Request, caller: Token) -> ModelCard:
    return require_own(
        services_of(request).catalogue.card(requests.model_name(request), caller.access), caller
    )


async def _stored(name: str, store: Store) -> Model:
    for model in await store.registry.models():
        if model.name == name:
            return model
    raise NotFound


def require_own(card: ModelCard, caller: Token) -> ModelCard:
    """Return ``card`` if ``caller`` may change the model.

    Raises:
        PermissionDenied: the model belongs to another account.
        BadRequest: the model is defined in models.yaml.
    """
    if card.kind is not None:
        raise BadRequest(f"Model {card.name} is defined in models.yaml on the server; change it there.")
    if card.owner != caller.owner:
        raise PermissionDenied(
            f'Model {card.name} belongs to the account "{card.owner}"; use a token of that account.'
        )
    return card


class ModelDetails:
    """Details of a model in lists: number of runs, newest version, first example."""

    def __init__(self, catalogue: Catalogue, counts: dict[str, int], examples: dict[str, Prediction]) -> None:
        self._catalogue = catalogue
        self._counts = counts
        self._examples = examples

    @classmethod
    async def of(cls, request: Request) -> ModelDetails:
        services = services_of(request)
        chosen = await services.store.registry.examples()
        found = {model: await services.store.get(ids[0]) for model, ids in chosen.items()}
        examples = {model: record for model, record in found.items() if record is not None}
        return cls(services.catalogue, await services.store.run_counts(), examples)

    def shown(self, card: ModelCard, base: str) -> ModelResponse:
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


_MODEL: Final = "/v1/models/{owner}/{name}"
ROUTES: Final = (
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models", query_models, methods=["QUERY"]),
    Route("/v1/models", create_model, methods=["POST"]),
    Route(_MODEL, get_model, methods=["GET"]),
    Route(_MODEL, update_model, methods=["PATCH"]),
    Route(_MODEL, delete_model, methods=["DELETE"]),
    Route(f"{_MODEL}/readme", get_readme, methods=["GET"]),
    Route(f"{_MODEL}/examples", list_examples, methods=["GET"]),
)
