"""*Models*: every model as a card, found by words or by collection, with what it does at the moment."""

from __future__ import annotations

import html
import zlib
from collections.abc import Sequence
from typing import Any, Final

import gradio as gr

from appliance.domain.errors import NotFound
from appliance.ui import layout, session
from appliance.ui.media import picture
from appliance.ui.output import addresses

_EVERY: Final = 3.0  # seconds between two looks at what is loaded
_ALL: Final = "All"
#: What the states of models are called.
STATES: Final = {
    "cold": "cold",
    "loading": "loading",
    "ready": "ready",
    "draining": "ready, about to leave",
    "unloading": "leaving",
    "falling asleep": "falling asleep",
    "asleep": "asleep",
    "waking": "waking",
}


def build() -> gr.Blocks:
    """The page."""
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
        shown = gr.State("")
        clock = gr.Timer(_EVERY)
        given = [words, collection, shown]
        blocks.load(collections, None, collection, **layout.QUIET)
        gr.on([blocks.load, words.change, collection.change, clock.tick], listing, given, [cards, shown],
              trigger_mode="always_last", **layout.QUIET)  # fmt: skip
    return blocks


@layout.told
async def collections(request: gr.Request) -> Any:
    """The choices of the menu; it is not there where there are none."""
    found = (await session.of(request).caller.get("/v1/collections"))["results"]
    names = [(one["name"], one["slug"]) for one in found]
    return gr.Dropdown([(_ALL, _ALL), *names], value=_ALL, visible=bool(names))


@layout.told
async def listing(words: str, collection: str, shown: str, request: gr.Request) -> Any:
    """The cards that are asked for, and the same to compare with: what has not changed is not sent."""
    caller = session.of(request).caller
    status = await caller.get("/admin/status")
    states = {model["name"]: model for model in status["models"]}
    if words.strip():
        found = await caller.get("/v1/search", query=words.strip(), limit=50)
        models = [one["model"] for one in found["models"]]
    else:
        models = await caller.every("/v1/models", sort_by="model_created_at")
    if collection != _ALL:
        try:
            chosen = (await caller.get(f"/v1/collections/{collection}"))["models"]
        except NotFound:
            chosen = []
        names = {(one["owner"], one["name"]) for one in chosen}
        models = [one for one in models if (one["owner"], one["name"]) in names]
    narrowed = bool(words.strip()) or collection != _ALL
    made = cards_of(models, states, () if narrowed else status["not_served"], narrowed=narrowed)
    mark = str(zlib.crc32(made.encode()))
    return (gr.skip(), gr.skip()) if mark == shown else (made, mark)


def cards_of(
    models: list[dict[str, Any]],
    states: dict[str, dict[str, Any]],
    not_served: Sequence[dict[str, str]] = (),
    *,
    narrowed: bool,
) -> str:
    """The cards as HTML; ``narrowed`` says that there may be models that are not asked for."""
    if not models and not not_served:
        told = (
            ("Nothing fits", "Use fewer words, or another collection.")
            if narrowed
            else ("There is no model yet", "Name one in models.yaml, and run appliance reload.")
        )
        return f'<div class="empty"><strong>{told[0]}</strong>{told[1]}</div>'
    cards = "".join(card(model, states.get(f"{model['owner']}/{model['name']}")) for model in models)
    cards += "".join(map(card_of_not_served, not_served))
    return f'<div class="cards">{cards}</div>'


def card_of_not_served(model: dict[str, str]) -> str:
    """HTML card of a model that cannot be served, with the reason."""
    name, problem = html.escape(model["name"]), html.escape(model["problem"])
    return (
        f'<div class="card"><div class="said"><h3>{name}</h3><p>{problem}</p>'
        '<div class="facts"><span class="badge failed">not served</span></div></div></div>'
    )


def card(model: dict[str, Any], state: dict[str, Any] | None) -> str:
    """One model as HTML."""
    owner, name = html.escape(model["owner"]), html.escape(model["name"])
    runs = model["run_count"]
    facts = [f'<span class="badge plain">{runs:,} {"run" if runs == 1 else "runs"}</span>']
    if state is not None:
        facts.insert(0, badge(state))
        facts.append(f'<span class="badge plain">{html.escape(state["kind"])}</span>')
    return (
        f'<a class="card" href="/{owner}/{name}">{cover(model)}<div class="said">'
        f"<h3><span>{owner}/</span>{name}</h3><p>{html.escape(model['description'] or '')}</p>"
        f'<div class="facts">{"".join(facts)}</div></div></a>'
    )


def badge(state: dict[str, Any]) -> str:
    """Return the state of a model as HTML."""
    word = STATES.get(state["state"], state["state"])
    if state["loading_for"] is not None:
        word += f", {state['loading_for']:.0f} s"
        if state["load_seconds"]:
            word += f" of about {state['load_seconds']:.0f}"
    return f'<span class="badge {html.escape(state["state"].replace(" ", "-"))}">{html.escape(word)}</span>'


def cover(model: dict[str, Any]) -> str:
    """A model's picture, or its example's; without one, a colour that is its own, and its initial."""
    example = model["default_example"] or {}
    made = next(filter(None, map(picture, addresses(example.get("output")))), None)
    if source := model["cover_image_url"] or made:
        return f'<img class="cover" alt="" loading="lazy" src="{html.escape(source)}">'
    hue = zlib.crc32(f"{model['owner']}/{model['name']}".encode()) % 360
    style = f"background:linear-gradient(135deg,hsl({hue} 45% 38%),hsl({(hue + 40) % 360} 50% 28%))"
    return (
        f'<div class="cover" style="{style}" aria-hidden="true">{html.escape(model["name"][0].upper())}</div>'
    )
