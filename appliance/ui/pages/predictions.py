"""The list of predictions and trainings. Administrators see all accounts, other users their own account."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import gradio as gr
from markupsafe import Markup

from appliance.protocols.admin_types import ApplianceStatusResponse, TokenPage
from appliance.ui import layout, markup, session
from appliance.ui.layout import Checksums

#: Rows of one page of the list.
ROWS: Final = 25
#: Seconds between updates of the first page.
REFRESH_INTERVAL: Final = 5.0

_STATES: Final = ("starting", "processing", "succeeded", "failed", "canceled", "aborted")
_AGES: Final = {"any time": None, "last hour": 3600, "last day": 86400, "last 7 days": 7 * 86400}
_ANY: Final = ""
_NO_FILTER: Final = ("any", _ANY)
_EMPTY: Final = markup.empty(
    "No predictions",
    Markup('No prediction matches the filters. To create one, <a href="./">choose a model</a> and run it.'),
)


def build() -> gr.Blocks:
    with layout.page("Predictions") as blocks:
        with gr.Row(elem_classes="filters"):
            states = [_NO_FILTER, *((state, state) for state in _STATES)]
            model = gr.Dropdown(label="Model", choices=[_NO_FILTER], value=_ANY, allow_custom_value=True)
            status = gr.Dropdown(label="State", choices=states, value=_ANY)
            token = gr.Dropdown(label="Token", choices=[_NO_FILTER], value=_ANY, allow_custom_value=True)
            age = gr.Dropdown(label="Created", choices=list(_AGES), value="any time")
        rows = gr.HTML(elem_id="predictions", min_height=200, apply_default_css=False)
        here: gr.State = gr.State("")  # the cursor of the shown page
        checksums: gr.State = gr.State([])
        older_at: gr.State = gr.State("")
        newer_at: gr.State = gr.State("")
        with gr.Row(elem_classes="actions"):
            newer = gr.Button("Newer", size="sm", interactive=False)
            older = gr.Button("Older", size="sm", interactive=False)
        filters = [model, status, token, age]
        asked = [checksums, *filters]
        shown = [checksums, rows, here, newer_at, older_at, newer, older]
        newest = gr.State("")
        blocks.load(_choices, None, filters, **layout.QUIET).then(
            _show, [newest, *asked], shown, **layout.QUIET
        )
        chosen = [each.input for each in filters]
        gr.on(chosen, _show, [newest, *asked], shown, trigger_mode="always_last", **layout.QUIET)
        newer.click(_show, [newer_at, *asked], shown, **layout.QUIET)
        older.click(_show, [older_at, *asked], shown, **layout.QUIET)
        gr.Timer(REFRESH_INTERVAL).tick(_refresh, [here, *asked], shown, **layout.QUIET)
    return blocks


@layout.show_errors
async def _choices(request: gr.Request) -> list[Any]:
    user = session.of(request)
    asked = request.query_params
    status = await user.caller.get_as(ApplianceStatusResponse, "/admin/status")
    models = [_NO_FILTER, *((each.name, each.name) for each in status.models)]
    tokens = [_NO_FILTER]
    if user.admin:
        listed = await user.caller.get_as(TokenPage, "/admin/tokens")
        tokens += [(f"{each.name} ({each.owner})", each.id) for each in listed.results]
    return [
        gr.Dropdown(choices=models, value=asked.get("model", _ANY)),
        gr.Dropdown(value=asked.get("status", _ANY)),
        gr.Dropdown(choices=tokens, value=asked.get("token", _ANY), visible=user.admin),
        gr.Dropdown(value=asked.get("made", "any time")),
    ]


@layout.show_errors
async def _refresh(
    cursor: str, checksums: Checksums, model: str, status: str, token: str, age: str, request: gr.Request
) -> list[Any]:
    """Update the list if it shows the newest predictions; leave older pages of the list unchanged."""
    if cursor:
        return [gr.skip()] * 7
    return await _show(cursor, checksums, model, status, token, age, request)


@layout.show_errors
async def _show(
    cursor: str, checksums: Checksums, model: str, status: str, token: str, age: str, request: gr.Request
) -> list[Any]:
    """Return the page of the list at ``cursor``; the first page if ``cursor`` is empty."""
    user = session.of(request)
    seconds = _AGES.get(age)
    since = None if seconds is None else datetime.fromtimestamp(time.time() - seconds, UTC).isoformat()
    found = await user.caller.get(
        "/admin/predictions",
        model=model or None,
        status=status or None,
        token=token or None,
        created_after=since,
        cursor=cursor or None,
        limit=ROWS,
    )
    newer, older = _cursor(found["previous"]), _cursor(found["next"])
    return [
        *layout.skip_unchanged([render(found["results"], everyone=user.admin)], checksums),
        cursor,
        newer,
        older,
        gr.Button(interactive=bool(newer)),
        gr.Button(interactive=bool(older)),
    ]


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


def _cursor(url: str | None) -> str:
    found = parse_qs(urlsplit(url or "").query).get("cursor", [""])
    return found[0]
