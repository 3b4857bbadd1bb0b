"""The list of predictions and trainings. Administrators see all accounts, other users their own account."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from markupsafe import Markup, escape
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from appliance.domain.errors import NotFound
from appliance.protocols import api_client
from appliance.protocols.account_types import TokenPage
from appliance.protocols.admin_types import ApplianceStatusResponse
from appliance.ui import markup, session, template_pages
from appliance.ui.languages import gettext as _
from appliance.ui.languages import translatable
from appliance.ui.state_names import state_name
from appliance.ui.template_pages import PagePart

#: Rows of one page of the list.
ROWS: Final = 25

_STATES: Final = ("starting", "processing", "succeeded", "failed", "canceled", "aborted")
#: Values of the filter "created": seconds, and their text.
_AGES: Final = {
    "3600": translatable("last hour"),
    "86400": translatable("last day"),
    "604800": translatable("last 7 days"),
}
#: Values of the filter "slower": durations for the API, and their text.
_SLOWER: Final = {
    "2s": translatable("more than 2 s"),
    "10s": translatable("more than 10 s"),
    "1m": translatable("more than 1 min"),
    "10m": translatable("more than 10 min"),
}
#: Format of a download -> its media type.
_KINDS: Final = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}
_LONGEST: Final = 200  # characters of an error in the list


async def show(request: Request) -> Response:
    user = session.current(request)
    status = await user.caller.get_as(ApplianceStatusResponse, "/admin/status")
    tokens = []
    if user.admin:
        tokens = (await user.caller.get_as(TokenPage, "/admin/tokens")).results
    return template_pages.respond(
        request,
        "predictions.html",
        title=_("Predictions"),
        models=[(each.name, each.name) for each in status.models],
        states=[(state, state_name(state)) for state in _STATES],
        tokens=[(each.id, f"{each.name} ({each.owner})") for each in tokens],
        ages=[(seconds, _(text)) for seconds, text in _AGES.items()],
        slower=[(duration, _(text)) for duration, text in _SLOWER.items()],
        chosen=request.query_params,
        list=await _list(request),
    )


async def download(request: Request) -> Response:
    """Stream all predictions that match the filters, as CSV or as JSON lines."""
    kind = request.path_params["kind"]
    if kind not in _KINDS:
        raise NotFound(_("Predictions can be downloaded as csv and jsonl."))
    query = urlencode({name: value for name, value in _filters(request).items() if value is not None})
    reply = await session.current(request).caller.open(
        "GET", f"/admin/predictions.{kind}", query=query.encode(), headers={}
    )
    if not reply.is_success:
        await reply.aread()
        await reply.aclose()
        raise api_client.error_from(reply)
    headers = {
        **template_pages.HEADERS,
        "content-type": _KINDS[kind],
        "content-disposition": f'attachment; filename="predictions.{kind}"',
    }
    return StreamingResponse(reply.aiter_raw(), headers=headers, background=BackgroundTask(reply.aclose))


async def rows(request: Request) -> Response:
    """Return the list alone, and put its filters into the address of the page."""
    found = template_pages.refreshed(request, await _list(request))
    found.headers["HX-Replace-Url"] = session.prefix(request) + _path(request.query_params)
    return found


def _filters(request: Request) -> dict[str, str | None]:
    """Return the filters in the address of the page as parameters of the API."""
    chosen = request.query_params
    seconds = chosen.get("made") if chosen.get("made") in _AGES else None
    since = None if seconds is None else datetime.fromtimestamp(time.time() - int(seconds), UTC).isoformat()
    return {
        "model": chosen.get("model") or None,
        "status": chosen.get("status") or None,
        "token": chosen.get("token") or None,
        "search": chosen.get("search") or None,
        "slower_than": chosen.get("slower") or None,
        "created_after": since,
    }


async def _list(request: Request) -> PagePart:
    user, chosen = session.current(request), request.query_params
    cursor = chosen.get("cursor") or None
    found = await user.caller.get("/admin/predictions", **_filters(request), cursor=cursor, limit=ROWS)
    filters = {name: value for name, value in chosen.items() if value and name != "cursor"}
    # A search is only repeated when the user changes it: it may read many predictions.
    refreshes = cursor is None and "search" not in filters
    return template_pages.part(
        "predictions_list.html",
        id="predictions",
        path=_path(filters, "/predictions/list"),
        seconds=5 if refreshes else None,
        table=render(found["results"], everyone=user.admin, selectable=user.may_run),
        newer=_page(filters, found["previous"]),
        older=_page(filters, found["next"]),
        searched_on="search" in filters and found["next"] and len(found["results"]) < ROWS,
        downloads=[(kind.upper(), _path(filters, f"/predictions/download/{kind}")) for kind in _KINDS],
    )


def render(records: list[dict[str, Any]], *, everyone: bool, selectable: bool) -> Markup:
    """Return the list of predictions; ``everyone`` adds the account and token, ``selectable`` a tick box."""
    rows = []
    for record in records:
        token = record["token_name"] or record["token"]
        preview = record["preview"]
        output = wrong(record["error"]) if record.get("error") else escape(preview["output"])
        whose = ", ".join(filter(None, [record["owner"], token])) if everyone else ""
        rows.append(
            [
                markup.render("predictions_cell.html", record=record, selectable=selectable),
                _cut(
                    Markup("<i>{}</i>").format(_("deleted"))
                    if record["data_removed"]
                    else escape(preview["input"])
                ),
                _cut(output),
                markup.moment(record["created_at"]) + Markup('<span class="quiet">{}</span>').format(whose),
                _times(record.get("metrics", {})),
            ]
        )
    headings = [_("Prediction"), _("Input"), _("Output"), _("Created"), _("Run time")]
    how = _('No prediction matches the filters. To create one, <a href="./">choose a model</a> and run it.')
    nothing = markup.empty(_("No predictions"), Markup(how))  # noqa: S704 - our text
    return Markup('<div class="part">{}</div>').format(markup.table(headings, rows, if_empty=nothing))


def wrong(error: str) -> Markup:
    shown = error if len(error) <= _LONGEST else f"{error[: _LONGEST - 1]}…"
    return Markup('<span class="wrong">{}</span>').format(shown)


def _cut(text: Markup) -> Markup:
    """Return a cell whose text is cut off after a few lines."""
    return Markup('<div class="preview">{}</div>').format(text) if text else Markup()


def _times(metrics: Mapping[str, Any]) -> str:
    """Return the run time, the speed of language models, and the time that loading took before."""
    took, tokens = metrics.get("predict_time"), metrics.get("output_token_count")
    parts = [markup.duration(took)]
    if isinstance(tokens, int | float) and tokens and took:
        parts.append(_("{number} tokens/s").format(number=f"{tokens / took:,.1f}"))
    if metrics.get("cold_start"):
        parts.append(_("after {time} of loading").format(time=markup.duration(metrics["cold_start"])))
    return ", ".join(filter(None, parts))


def _page(filters: Mapping[str, str], url: str | None) -> str | None:
    """Return the path of the page that shows the list at ``url``, a link in a response of the API."""
    if url is None:
        return None
    cursor = parse_qs(urlsplit(url).query)["cursor"][0]
    return _path({**filters, "cursor": cursor})


def _path(query: Mapping[str, str], path: str = "/predictions") -> str:
    given = {name: value for name, value in query.items() if value}
    return path + (f"?{urlencode(given)}" if given else "")


ROUTES: Final = (
    Route("/predictions", show),
    Route("/predictions/list", rows),
    Route("/predictions/download/{kind}", download),
)
