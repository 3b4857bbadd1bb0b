"""The page that lists all models, with their states, a search field and a menu of collections."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Final

import gradio as gr
from markupsafe import Markup

from appliance.domain.errors import NotFound
from appliance.protocols import api_client
from appliance.protocols.admin_types import ApplianceStatusResponse, ModelNotServed, ModelStatus
from appliance.protocols.api_client import file_urls
from appliance.protocols.response_types import (
    CollectionDetailResponse,
    CollectionPage,
    ModelResponse,
    SearchResultsResponse,
)
from appliance.ui import layout, markup, session
from appliance.ui.layout import Checksums
from appliance.ui.media import image_url

_REFRESH_INTERVAL: Final = 3.0  # seconds
_ALL: Final = "All"
#: Texts for the states of models.
STATES: Final = {
    "cold": "cold",
    "loading": "loading",
    "ready": "ready",
    "draining": "ready, unloads soon",
    "unloading": "unloading",
    "falling asleep": "falling asleep",
    "asleep": "asleep",
    "waking": "waking",
}


def build() -> gr.Blocks:
    with layout.page("Models") as blocks:
        with gr.Row(equal_height=True):
            words = gr.Textbox(
                placeholder="Search models", show_label=False, scale=3, min_width=200, container=False
            )
            collection = gr.Dropdown(
                [_ALL], value=_ALL, label="Collection", show_label=False, scale=1, min_width=160,
                container=False, visible=False, elem_id="collection",
            )  # fmt: skip
        cards = gr.HTML(elem_id="cards", min_height=480, apply_default_css=False)
        checksums = gr.State([])
        clock = gr.Timer(_REFRESH_INTERVAL)
        given = [words, collection, checksums]
        blocks.load(collections, None, collection, **layout.QUIET)
        gr.on([blocks.load, words.change, collection.change, clock.tick], listing, given, [checksums, cards],
              trigger_mode="always_last", **layout.QUIET)  # fmt: skip
    return blocks


@layout.show_errors
async def collections(request: gr.Request) -> Any:
    found = (await session.of(request).caller.get_as(CollectionPage, "/v1/collections")).results
    names = [(one.name, one.slug) for one in found]
    return gr.Dropdown([(_ALL, _ALL), *names], value=_ALL, visible=bool(names))


@layout.show_errors
async def listing(words: str, collection: str, checksums: Checksums, request: gr.Request) -> list[Any]:
    caller = session.of(request).caller
    status = await caller.get_as(ApplianceStatusResponse, "/admin/status")
    states = {model.name: model for model in status.models}
    if words.strip():
        found = await caller.get_as(SearchResultsResponse, "/v1/search", query=words.strip(), limit=50)
        models = [one.model for one in found.models]
    else:
        listed = await caller.all_pages("/v1/models", sort_by="model_created_at")
        models = api_client.convert(listed, list[ModelResponse])
    if collection != _ALL:
        try:
            path = f"/v1/collections/{collection}"
            chosen = (await caller.get_as(CollectionDetailResponse, path)).models
        except NotFound:
            chosen = []
        names = {(one.owner, one.name) for one in chosen}
        models = [one for one in models if (one.owner, one.name) in names]
    narrowed = bool(words.strip()) or collection != _ALL
    made = cards_of(models, states, () if narrowed else status.not_served, narrowed=narrowed)
    return layout.skip_unchanged([made], checksums)


def cards_of(
    models: list[ModelResponse],
    states: dict[str, ModelStatus],
    not_served: Sequence[ModelNotServed] = (),
    *,
    narrowed: bool,
) -> Markup:
    """Return the list of models as HTML, followed by the models that cannot be served.

    ``states`` has the items of ``models`` in ``GET /admin/status``, by name. ``narrowed`` tells whether a
    search or a collection has left out models.
    """
    if models or not_served:
        cards = [_card(model, states.get(f"{model.owner}/{model.name}")) for model in models]
        return markup.render("cards.html", cards=cards, not_served=not_served)
    if narrowed:
        return markup.empty("No model matches", "Search for fewer words, or choose another collection.")
    return markup.empty("There is no model yet", "Add a model to models.yaml, then run appliance reload.")


def _card(model: ModelResponse, state: ModelStatus | None) -> dict[str, Any]:
    runs = model.run_count
    output = None if model.default_example is None else model.default_example.output
    made = next(filter(None, map(image_url, file_urls(output))), None)
    return {
        "owner": model.owner,
        "name": model.name,
        "description": model.description or "",
        "image": model.cover_image_url or made,
        "hue": zlib.crc32(f"{model.owner}/{model.name}".encode()) % 360,
        "state": state and badge(state),
        "kind": state and state.kind,
        "runs": f"{runs:,} {'run' if runs == 1 else 'runs'}",
    }


def badge(state: ModelStatus) -> Markup:
    """Return the state of a model as HTML; for a loading model, with the seconds passed and expected."""
    word = STATES.get(state.state, state.state)
    if state.loading_for is not None:
        word += f", {state.loading_for:.0f} s"
        if state.load_seconds:
            word += f" of about {state.load_seconds:.0f}"
    return markup.badge(state.state, word)
