"""Routes for collections of models, and the search for models and collections."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.config import CollectionConfig
from appliance.domain.errors import MalformedQuery, NotFound
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.replicate import models
from appliance.gateway.api.services import services_of
from appliance.protocols import serializers
from appliance.protocols.response_types import (
    CollectionDetailResponse,
    CollectionResponse,
    FoundCollection,
    FoundMetadata,
    FoundModel,
    SearchResultsResponse,
)

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 50


async def list_collections(request: Request) -> Response:
    """``GET /collections``: the collections of models.yaml, in the order of that file."""
    await requests.caller(request, Scope.READ)
    return responses.json(
        serializers.page([_brief(one) for one in services_of(request).catalogue.collections.values()])
    )


async def get_collection(request: Request) -> Response:
    services = services_of(request)
    caller = await requests.caller(request, Scope.READ)
    found = services.catalogue.collections.get(request.path_params["slug"])
    if found is None:
        raise NotFound
    listing = await models.ModelDetails.of(request)
    base = requests.base_url(request)
    cards = services.catalogue.cards  # does not contain models that cannot be served
    visible = [name for name in found.models if name in cards and caller.access.allows(name)]
    shown = [listing.shown(cards[name], base) for name in visible]
    body = CollectionDetailResponse(
        name=found.name,
        slug=found.slug,
        description=found.description,
        full_description=found.full_description,
        models=shown,
    )
    return responses.json(body, base=base)


async def search(request: Request) -> Response:
    """``GET /search?query=&limit=``: models and collections, best first.

    As on Replicate, a search needs no token, and its clients send none. It finds only public models.
    """
    services = services_of(request)
    access = services.auth.policy.of(None)
    if "authorization" in request.headers:
        access = (await requests.caller(request, Scope.READ)).access
    query = request.query_params.get("query")
    if not query:
        raise MalformedQuery('Query parameter "query" is required')
    limit = requests.limit(request, DEFAULT_LIMIT, MAX_LIMIT)
    listing = await models.ModelDetails.of(request)
    base = requests.base_url(request)
    found = [
        FoundModel(
            model=listing.shown(card, base),
            metadata=FoundMetadata(
                generated_description=card.description,
                tags=[] if card.kind is None else [card.kind],
                score=round(score, 3),
            ),
        )
        for card, score in services.catalogue.search(query, access)[:limit]
    ]
    words = query.lower().split()
    collections = [
        FoundCollection(
            name=one.name,
            slug=one.slug,
            description=one.description,
            models=list(filter(access.allows, one.models)),
        )
        for one in services.catalogue.collections.values()
        if all(word in f"{one.slug} {one.name} {one.description}".lower() for word in words)
    ]
    body = SearchResultsResponse(query=query, models=found, collections=collections[:limit], pages=[])
    return responses.json(body, base=base)


def _brief(collection: CollectionConfig) -> CollectionResponse:
    return CollectionResponse(name=collection.name, slug=collection.slug, description=collection.description)


ROUTES: Final = (
    Route("/v1/collections", list_collections, methods=["GET"]),
    Route("/v1/collections/{slug}", get_collection, methods=["GET"]),
    Route("/v1/search", search, methods=["GET"]),
)
