"""The page that lists all models: search, filters by kind and collection, and the first steps."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import NotFound
from appliance.protocols import api_client
from appliance.protocols.admin_types import ApplianceStatusResponse, ModelNotServed, ModelStatus
from appliance.protocols.api_client import file_urls
from appliance.protocols.response_types import CollectionDetailResponse, CollectionPage, ModelResponse
from appliance.ui import first_steps, markup, search, session, template_pages
from appliance.ui.client import Caller
from appliance.ui.languages import gettext as _
from appliance.ui.languages import ngettext
from appliance.ui.media import image_url
from appliance.ui.output import text_of
from appliance.ui.pages import find
from appliance.ui.state_names import state_name

_COVER_TEXT: Final = 200  # characters of the first example's text on a card


async def show(request: Request) -> Response:
    user = session.current(request)
    status, models, collections = await asyncio.gather(
        user.caller.get_as(ApplianceStatusResponse, "/admin/status"),
        _all_models(user.caller),
        user.caller.get_as(CollectionPage, "/v1/collections"),
    )
    kinds = sorted({model.kind for model in status.models if model.kind})
    return template_pages.respond(
        request,
        "explore.html",
        title=_("Models"),
        kinds=[(kind, search.kind_name(kind)) for kind in kinds],
        collections=[(one.slug, one.name) for one in collections.results],
        chosen=request.query_params,
        may_add=user.admin and "/add" in request.scope[template_pages.PATHS],
        start=await first_steps.card(user, models, {one.name: one.kind for one in status.models}),
        list=await _list(request.query_params, user.caller, status, models),
    )


async def cards(request: Request) -> Response:
    """Return the cards, and put the filters into the address of the page; 204 if nothing has changed."""
    caller = session.current(request).caller
    status, models = await asyncio.gather(
        caller.get_as(ApplianceStatusResponse, "/admin/status"), _all_models(caller)
    )
    made = await _list(request.query_params, caller, status, models)
    if request.query_params.get("seen") == made["seen"]:
        return Response(status_code=204, headers=template_pages.HEADERS)
    found = template_pages.fragment("explore_cards.html", list=made)
    if "seen" not in request.query_params:  # the filters were changed
        found.headers["HX-Replace-Url"] = session.prefix(request) + _path(request.query_params, "/explore")
    return found


async def _all_models(caller: Caller) -> list[ModelResponse]:
    listed = await caller.all_pages("/v1/models", sort_by="model_created_at")
    return api_client.convert(listed, list[ModelResponse])


async def _list(
    chosen: Mapping[str, str], caller: Caller, status: ApplianceStatusResponse, models: list[ModelResponse]
) -> dict[str, Any]:
    states = {model.name: model for model in status.models}
    kinds = {name: state.kind or "" for name, state in states.items()}
    query = chosen.get("q", "").strip()
    if query:
        models = [item.value for item in search.find(query, find.model_items(models, kinds))]
    if kind := chosen.get("kind"):
        models = [one for one in models if kinds.get(f"{one.owner}/{one.name}") == kind]
    if slug := chosen.get("collection"):
        names = await _names_in(slug, caller)
        models = [one for one in models if (one.owner, one.name) in names]
    narrowed = bool(query or kind or slug)
    made = cards_of(models, states, () if narrowed else status.not_served, narrowed=narrowed)
    seen = f"{zlib.crc32(made.encode(errors='replace')):08x}"
    refresh = _path({**_filters(chosen), "seen": seen}, "/explore/cards")
    return {"cards": made, "refresh": refresh, "seen": seen}


async def _names_in(collection: str, caller: Caller) -> set[tuple[str, str]]:
    try:
        found = await caller.get_as(CollectionDetailResponse, f"/v1/collections/{collection}")
    except NotFound:
        return set()
    return {(one.owner, one.name) for one in found.models}


def _filters(query: Mapping[str, str]) -> dict[str, str]:
    return {name: query[name] for name in ("q", "kind", "collection") if query.get(name)}


def _path(query: Mapping[str, str], path: str) -> str:
    given = {name: value for name, value in query.items() if value}
    return path + (f"?{urlencode(given)}" if given else "")


def cards_of(
    models: list[ModelResponse],
    states: dict[str, ModelStatus],
    not_served: Sequence[ModelNotServed] = (),
    *,
    narrowed: bool,
) -> Markup:
    """Return the list of models as HTML, followed by the models that cannot be served.

    ``states`` has the items of ``models`` in ``GET /admin/status``, by name. ``narrowed`` tells whether a
    search or a filter has left out models.
    """
    if models or not_served:
        cards = [_card(model, states.get(f"{model.owner}/{model.name}")) for model in models]
        return markup.render("cards.html", cards=cards, not_served=not_served)
    if narrowed:
        return markup.empty(_("No model matches"), _("Search for other words, or choose another kind."))
    return markup.empty(
        _("There is no model yet"),
        _("Add a model here, or with “appliance add”, or to models.yaml and run “appliance reload”."),
    )


def _card(model: ModelResponse, state: ModelStatus | None) -> dict[str, Any]:
    runs = model.run_count
    output = None if model.default_example is None else model.default_example.output
    urls = list(file_urls(output))
    made = next(filter(None, map(image_url, urls)), None)
    return {
        "owner": model.owner,
        "name": model.name,
        "description": model.description or "",
        "image": model.cover_image_url or made,
        "text": "" if urls or not isinstance(output, str | list) else text_of(output).strip()[:_COVER_TEXT],
        "hue": zlib.crc32(f"{model.owner}/{model.name}".encode()) % 360,
        "state": state and badge(state),
        "kind": state and state.kind and search.kind_name(state.kind),
        "runs": ngettext("{number} run", "{number} runs", runs).format(number=f"{runs:,}"),
    }


def badge(state: ModelStatus) -> Markup:
    """Return the state of a model as HTML; for a loading model, with the seconds passed and expected."""
    word = state_name(state.state)
    if state.loading_for is not None:
        passed, expected = f"{state.loading_for:.0f}", f"{state.load_seconds or 0:.0f}"
        text = (
            _("{state}, {passed} s of about {expected}") if state.load_seconds else _("{state}, {passed} s")
        )
        word = text.format(state=word, passed=passed, expected=expected)
    return markup.badge(state.state, word)


ROUTES: Final = (Route("/explore", show), Route("/explore/cards", cards))
