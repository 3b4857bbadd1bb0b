"""The list of predictions and trainings. Administrators see all accounts, other users their own account."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.protocols.admin_types import ApplianceStatusResponse, TokenPage
from appliance.ui import markup, session, template_pages

#: Rows of one page of the list.
ROWS: Final = 25

_STATES: Final = ("starting", "processing", "succeeded", "failed", "canceled", "aborted")
#: Values of the filter "created": seconds, and their text.
_AGES: Final = {"3600": "last hour", "86400": "last day", "604800": "last 7 days"}
_EMPTY: Final = markup.empty(
    "No predictions",
    Markup('No prediction matches the filters. To create one, <a href="./">choose a model</a> and run it.'),
)


async def show(request: Request) -> Response:
    user = session.current(request)
    status = await user.caller.get_as(ApplianceStatusResponse, "/admin/status")
    tokens = []
    if user.admin:
        tokens = (await user.caller.get_as(TokenPage, "/admin/tokens")).results
    return template_pages.respond(
        request,
        "predictions.html",
        title="Predictions",
        models=[(each.name, each.name) for each in status.models],
        states=[(state, state) for state in _STATES],
        tokens=[(each.id, f"{each.name} ({each.owner})") for each in tokens],
        ages=list(_AGES.items()),
        chosen=request.query_params,
        list=await _list(request),
    )


async def rows(request: Request) -> Response:
    """Return the list alone, and put its filters into the address of the page."""
    found = template_pages.fragment("predictions_list.html", list=await _list(request))
    found.headers["HX-Replace-Url"] = session.prefix(request) + _path(request.query_params)
    return found


async def _list(request: Request) -> dict[str, Any]:
    user, chosen = session.current(request), request.query_params
    seconds = chosen.get("made") if chosen.get("made") in _AGES else None
    since = None if seconds is None else datetime.fromtimestamp(time.time() - int(seconds), UTC).isoformat()
    found = await user.caller.get(
        "/admin/predictions",
        model=chosen.get("model") or None,
        status=chosen.get("status") or None,
        token=chosen.get("token") or None,
        created_after=since,
        cursor=chosen.get("cursor") or None,
        limit=ROWS,
    )
    filters = {name: value for name, value in chosen.items() if value and name != "cursor"}
    return {
        "table": render(found["results"], everyone=user.admin),
        "newer": _page(filters, found["previous"]),
        "older": _page(filters, found["next"]),
        "refresh": None if chosen.get("cursor") else _path(filters, "/predictions/list"),
    }


def render(records: list[dict[str, Any]], *, everyone: bool) -> Markup:
    """Return the list of predictions; ``everyone`` adds columns for account and token."""
    whose = ["Account", "Token"] if everyone else []
    headings = ["State", "Prediction", "Model", *whose, "Created", "Loading", "Running"]
    rows = []
    for record in records:
        metrics = record.get("metrics", {})
        token = record["token_name"] or record["token"] or ""
        rows.append(
            [
                markup.badge(record["status"]),
                markup.link(f"/p/{record['id']}", record["id"]),
                markup.link(f"/{record['model']}", record["model"]),
                *([record["owner"], token] if everyone else []),
                markup.moment(record["created_at"]),
                markup.duration(metrics.get("cold_start")),
                markup.duration(metrics.get("predict_time")),
            ]
        )
    return Markup('<div class="part">{}</div>').format(markup.table(headings, rows, if_empty=_EMPTY))


def _page(filters: Mapping[str, str], url: str | None) -> str | None:
    """Return the path of the page that shows the list at ``url``, a link in a response of the API."""
    if url is None:
        return None
    cursor = parse_qs(urlsplit(url).query)["cursor"][0]
    return _path({**filters, "cursor": cursor})


def _path(query: Mapping[str, str], path: str = "/predictions") -> str:
    given = {name: value for name, value in query.items() if value}
    return path + (f"?{urlencode(given)}" if given else "")


ROUTES: Final = (Route("/predictions", show), Route("/predictions/list", rows))
