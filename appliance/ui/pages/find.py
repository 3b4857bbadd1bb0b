"""What the dialog of find.js asks: models, predictions, pages, settings and pages of the manual.

``GET /_ui/find?q=`` returns ``{"results": [{"kind", "title", "detail", "path"}]}``, best first. ``path`` is
relative to the ``<base>`` of the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance.domain.errors import ApplianceError
from appliance.protocols import api_client
from appliance.protocols.admin_types import ApplianceStatusResponse
from appliance.protocols.response_types import ModelResponse
from appliance.ui import session
from appliance.ui.client import Caller
from appliance.ui.languages import gettext as _
from appliance.ui.languages import translatable
from appliance.ui.search import KIND_NAMES, KIND_WORDS, Findable, find, kind_name
from appliance.ui.state_names import state_name

#: Key in an ASGI scope of the folder of the built manual, and of the pages that the user may open.
MANUAL: Final = "appliance.manual"
LISTED: Final = "appliance.listed"

_RECENT: Final = 30  # newest predictions whose inputs are searched
_MOST: Final = 6  # results of one kind
_LONGEST: Final = 200  # characters of a query
_ID: Final = re.compile(r"[a-z0-9]{4,26}")
#: Words for which pages and settings are found, by path.
_WORDS: Final = {
    "/explore": "home list start here",
    "/chat": "talk conversation assistant",
    "/compare": "side by side difference",
    "/predictions": "runs history jobs queue results",
    "/machine": "memory gpu load unload status devices",
    "/usage": "cost price statistics tokens csv",
    "/api": "docs reference openapi swagger curl python javascript client operations routes",
    "/settings": "tokens keys webhook configuration about version admin",
}
_SETTINGS: Final = (
    (translatable("Tokens"), "create revoke api key secret access permissions", "/settings#tokens"),
    (translatable("Webhook key"), "replace rotate signature secret", "/settings#webhooks"),
    (translatable("About the appliance"), "version health retention uptime", "/settings#about"),
    (translatable("Configuration in effect"), "models.yaml config options", "/settings#configuration"),
)
_TAG: Final = re.compile(r"<[^>]+>")


async def show(request: Request) -> Response:
    query = request.query_params.get("q", "").strip()[:_LONGEST]
    user = session.current(request)
    models, predictions = await asyncio.gather(_models(query, user.caller), _predictions(query, user.caller))
    pages = _pages(query, request)
    manual = _manual(query, request.scope[MANUAL]) if query else []
    return JSONResponse({"results": [*predictions[:_MOST], *models[:_MOST], *pages[:_MOST], *manual[:_MOST]]})


def model_items(models: list[ModelResponse], kinds: dict[str, str]) -> list[Findable]:
    """Return models to search in. ``kinds`` has the kinds of models by name."""
    found = []
    for model in models:
        kind = kinds.get(f"{model.owner}/{model.name}", "")
        synonyms = f"{kind} {KIND_NAMES.get(kind, '')} {kind_name(kind)} {KIND_WORDS.get(kind, '')}"
        found.append(Findable(f"{model.owner}/{model.name}", synonyms, model.description or "", model))
    return found


async def _models(query: str, caller: Caller) -> list[dict[str, str]]:
    status = await caller.get_as(ApplianceStatusResponse, "/admin/status")
    listed = api_client.convert(await caller.all_pages("/v1/models"), list[ModelResponse])
    kinds = {one.name: one.kind for one in status.models if one.kind}
    return [
        _result(_("Model"), item.title, item.text, f"/{item.title}")
        for item in find(query, model_items(listed, kinds))
    ]


async def _predictions(query: str, caller: Caller) -> list[dict[str, str]]:
    if len(query) < 3:
        return []
    records = (await caller.get("/admin/predictions", limit=_RECENT))["results"]
    if _ID.fullmatch(query) and all(record["id"] != query for record in records):
        with contextlib.suppress(ApplianceError):  # it is no id
            records.append(await caller.get(f"/admin/predictions/{query}"))
    texts = await asyncio.gather(*(_inputs.text(caller, record) for record in records))
    found = []
    for record, text in zip(records, texts, strict=True):
        if record["id"].startswith(query) or query.casefold() in text.casefold():
            detail = f"{record['model']} · {state_name(record['status'])} · {text}"
            found.append(_result(_("Prediction"), record["id"], detail[:_LONGEST], f"/p/{record['id']}"))
    return found


class _Inputs:
    """The texts of the inputs of predictions, which change only if deleted; the newest are remembered."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[str, str] = {}

    async def text(self, caller: Caller, listed: Mapping[str, Any]) -> str:
        """Return the texts in the input of a prediction that the API has listed for this caller."""
        id = listed["id"]
        if listed["data_removed"]:
            self._known.pop(id, None)
            return ""
        if id not in self._known:
            record = await caller.get(f"/admin/predictions/{id}")
            if len(self._known) >= self._most:
                self._known.pop(next(iter(self._known)))
            self._known[id] = " ".join(_texts(record.get("input")))[:2000]
        return self._known[id]


_inputs: Final = _Inputs(1000)


def _texts(value: Any) -> list[str]:
    match value:
        case str():
            return [] if value.startswith("data:") else [value]
        case dict():
            return [text for part in value.values() for text in _texts(part)]
        case list():
            return [text for part in value for text in _texts(part)]
    return []


def _pages(query: str, request: Request) -> list[dict[str, str]]:
    items = [
        Findable(_(page.title), f"{page.title} {_WORDS.get(page.path, '')}", "", (_("Page"), page.path))
        for page in request.scope[LISTED]
    ]
    if session.current(request).admin:
        items += [
            Findable(_(title), f"{title} {words}", "", (_("Setting"), path))
            for title, words, path in _SETTINGS
        ]
    return [_result(item.value[0], item.title, "", item.value[1]) for item in find(query, items)]


def _manual(query: str, folder: Path) -> list[dict[str, str]]:
    found = find(query, _manual_items(folder))
    return [_result(_("Manual"), item.title, item.text[:_LONGEST], f"/manual/{item.value}") for item in found]


@functools.cache
def _manual_items(folder: Path) -> list[Findable]:
    """Return the sections of the manual from the index that MkDocs has built; none without a manual."""
    file = folder / "search" / "search_index.json"
    if not file.is_file():
        return []
    sections = json.loads(file.read_text())["docs"]
    return [
        Findable(
            html.unescape(_TAG.sub("", section["title"])),
            "",
            " ".join(html.unescape(_TAG.sub(" ", section["text"])).split()),
            section["location"],
        )
        for section in sections
    ]


def _result(kind: str, title: str, detail: str, path: str) -> dict[str, str]:
    return {"kind": kind, "title": title, "detail": detail, "path": "." + quote(path, safe="/#?=&-_.~")}


ROUTES: Final = (Route("/_ui/find", show),)
