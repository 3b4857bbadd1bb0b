"""The page of one prediction or training: facts, timeline, output, input, logs and webhook."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import gradio as gr
from markupsafe import Markup

from appliance.domain.errors import NotFound
from appliance.ui import layout, markup, session
from appliance.ui.layout import Checksums
from appliance.ui.watcher import ENDED

#: Seconds between updates until the prediction has ended.
REFRESH_INTERVAL: Final = 1.0

_SHOW: Final = "Show as an example"
_HIDE: Final = "Remove from the examples"
_MISSING: Final = markup.empty(
    "There is no such prediction",
    Markup('It does not exist, or belongs to another account. <a href="./predictions">See the list.</a>'),
)


def build() -> gr.Blocks:
    with layout.page("Prediction") as blocks:
        head = gr.HTML(elem_id="prediction", min_height=160, apply_default_css=False)
        with gr.Row(elem_classes="actions"):
            cancel = gr.Button("Cancel", variant="stop", size="sm", visible=False)
            again = gr.Button("Run again, with changes", size="sm", visible=False)
            example = gr.Button(_SHOW, size="sm", visible=False)
        body = gr.HTML(min_height=300, apply_default_css=False)
        timer = gr.Timer(REFRESH_INTERVAL)
        checksums = gr.State([])
        shown = [checksums, head, body, cancel, again, example, timer]
        blocks.load(_show, checksums, shown, **layout.QUIET)
        timer.tick(_show, checksums, shown, **layout.QUIET)
        cancel.click(_cancel, checksums, shown, **layout.QUIET)
        example.click(_toggle_example, checksums, shown, **layout.QUIET)
    return blocks


@layout.show_errors
async def _show(checksums: Checksums, request: gr.Request) -> list[Any]:
    user = session.of(request)
    try:
        record = await user.caller.get(_path(request))
    except NotFound:
        hidden = [gr.Button(visible=False) for _ in range(3)]
        return [*layout.skip_unchanged([_MISSING, ""], checksums), *hidden, gr.Timer(active=False)]
    return _shown(record, user, checksums)


@layout.show_errors
async def _cancel(checksums: Checksums, request: gr.Request) -> list[Any]:
    user = session.of(request)
    return _shown(await user.caller.post(f"{_path(request)}/cancel"), user, checksums)


@layout.show_errors
async def _toggle_example(checksums: Checksums, request: gr.Request) -> list[Any]:
    user = session.of(request)
    record = await user.caller.get(_path(request))
    method = "DELETE" if record["example"] else "PUT"
    await user.caller.send(method, f"/admin/models/{record['model']}/examples/{record['id']}")
    return _shown(await user.caller.get(_path(request)), user, checksums)


def _path(request: gr.Request) -> str:
    return f"/admin/predictions/{layout.parameters(request)['id']}"


def _shown(record: dict[str, Any], user: session.Session, checksums: Checksums) -> list[Any]:
    ended = record["status"] in ENDED
    rerun = user.may_run and record["type"] == "prediction" and not record.get("operation")
    return [
        *layout.skip_unchanged([head(record), body(record)], checksums),
        gr.Button(visible=user.may_run and not ended),
        gr.Button(visible=rerun and not record["data_removed"], link=f".{again(record)}"),
        gr.Button(
            _HIDE if record["example"] else _SHOW,
            visible=user.admin and record["status"] == "succeeded" and not record["data_removed"],
        ),
        gr.Timer(active=not ended),
    ]


def again(record: Mapping[str, Any]) -> str:
    """Return the path of the model's form, which will be filled with this prediction's input."""
    older = record["model_state"] is not None and not record["newest_version"]
    page = f"/{record['model']}/versions/{record['version']}" if older else f"/{record['model']}"
    return f"{page}?{urlencode({'from': record['id']})}"


def head(record: Mapping[str, Any]) -> Markup:
    facts = {
        "Model": markup.link(f"/{record['model']}", record["model"]),
        "Account": record["owner"],
        "Token": record["token_name"] or record["token"] or "unknown",
        "Created": markup.moment(record["created_at"]),
    }
    if record["hardware"]:
        facts["Hardware"] = record["hardware"]
    if record["cost"] is not None:
        facts["Cost"] = markup.money(record["cost"], record["currency"])
    if record["example"]:
        page = markup.link(f"/{record['model']}", record["model"])
        facts["Example"] = Markup("Shown to everyone who may see {}").format(page)
    if record.get("deployment"):
        facts["Deployment"] = record["deployment"]
    if record.get("parent"):
        facts["Parent"] = markup.link(f"/p/{record['parent']}", record["parent"])
    if record.get("parts"):
        facts["Children"] = Markup(" ").join(markup.link(f"/p/{child}", child) for child in record["parts"])
    if record["attempts"] > 1:
        facts["Attempts"] = str(record["attempts"])
    if record.get("destination"):
        facts["Destination"] = markup.link(f"/{record['destination']}", record["destination"])
    heading = Markup("<h2>{} {}</h2>").format(record["id"], markup.badge(record["status"]))
    facts_and_time = markup.pairs(facts) + timeline(record)
    return Markup('<section class="part">{}{}</section>').format(heading, facts_and_time)


def timeline(record: Mapping[str, Any]) -> Markup:
    phases = record["timeline"]
    total = sum(each["seconds"] for each in phases)
    segments = [
        markup.BarSegment(
            f"{each['phase']} {markup.duration(each['seconds'])}", each["seconds"], each["phase"]
        )
        for each in phases
    ]
    drawn = markup.bar(segments, total, label=f"{markup.duration(total)} in all")
    if record["status"] == "starting" and record.get("model_state"):
        drawn += markup.note(f"The model is {record['model_state']}.")
    return drawn


def body(record: Mapping[str, Any]) -> Markup:
    parts = []
    if record["error"]:
        parts.append(markup.section("Error", markup.text(str(record["error"]))))
    if record["data_removed"]:
        reason = "Its input, output and logs were removed, as <code>retention</code> in models.yaml tells."
        parts.append(markup.note(Markup(reason)))  # noqa: S704 - a constant
    else:
        output = record.get("output")
        waiting = record["status"] not in ENDED and output is None
        parts.append(markup.section("Output", markup.note("None yet.") if waiting else markup.value(output)))
        given = {name: markup.value(part) for name, part in record["input"].items()}
        parts.append(markup.section("Input", markup.pairs(given) if given else markup.note("Empty.")))
        if record["logs"]:
            parts.append(markup.section("Logs", markup.text(record["logs"])))
    if record.get("metrics"):
        numbers = {name: _plain(part) for name, part in record["metrics"].items()}
        parts.append(markup.section("Metrics", markup.pairs(numbers)))
    if record.get("webhook"):
        parts.append(markup.section("Webhook", _webhook(record)))
    return markup.join(parts)


def _webhook(record: Mapping[str, Any]) -> Markup:
    rows = [
        [
            markup.badge(each["state"]),
            str(each["attempts"]),
            markup.moment(each["ended_at"] or each["due_at"]),
            each["problem"] or "",
        ]
        for each in record["deliveries"]
    ]
    events = ", ".join(record["webhook_events_filter"])
    headings = ["Delivery of the last event", "Attempts", "When", "Problem"]
    nothing = markup.empty("Nothing to deliver yet", "Only the last event is listed; others are sent once.")
    url = Markup("<p><code>{}</code></p>").format(record["webhook"])
    return url + markup.note(f"Events: {events}") + markup.table(headings, rows, if_empty=nothing)


def _plain(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
