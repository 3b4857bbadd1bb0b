"""One prediction or training: what went in and came out, what its time went into, what was sent of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any, Final
from urllib.parse import urlencode

import gradio as gr

from appliance.domain.errors import NotFound
from appliance.ui import layout, markup, session
from appliance.ui.layout import Marks

#: Seconds between looks while it is under way.
PERIOD: Final = 1.0

_OVER: Final = frozenset({"succeeded", "failed", "canceled", "aborted"})
_SHOW: Final = "Show as an example"
_HIDE: Final = "Show no longer as an example"
_MISSING: Final = (
    '<div class="empty"><strong>There is no such prediction</strong>It does not exist, or belongs to another '
    'account. <a href="/predictions">See those that there are.</a></div>'
)


def build() -> gr.Blocks:
    """The page."""
    with layout.page("Prediction") as blocks:
        head = gr.HTML(elem_id="prediction", min_height=160, apply_default_css=False)
        with gr.Row(elem_classes="actions"):
            cancel = gr.Button("Cancel", variant="stop", size="sm", visible=False)
            again = gr.Button("Run again, with changes", size="sm", visible=False)
            example = gr.Button(_SHOW, size="sm", visible=False)
        body = gr.HTML(min_height=300, apply_default_css=False)
        timer = gr.Timer(PERIOD)
        marks = gr.State([])
        shown = [marks, head, body, cancel, again, example, timer]
        blocks.load(_show, marks, shown, **layout.QUIET)
        timer.tick(_show, marks, shown, **layout.QUIET)
        cancel.click(_cancel, marks, shown, **layout.QUIET)
        example.click(_turn_example, marks, shown, **layout.QUIET)
    return blocks


@layout.told
async def _show(marks: Marks, request: gr.Request) -> list[Any]:
    who = session.of(request)
    try:
        record = await who.caller.get(_path(request))
    except NotFound:
        hidden = [gr.Button(visible=False) for _ in range(3)]
        return [*layout.changed([_MISSING, ""], marks), *hidden, gr.Timer(active=False)]
    return _shown(record, who, marks)


@layout.told
async def _cancel(marks: Marks, request: gr.Request) -> list[Any]:
    who = session.of(request)
    return _shown(await who.caller.post(f"{_path(request)}/cancel"), who, marks)


@layout.told
async def _turn_example(marks: Marks, request: gr.Request) -> list[Any]:
    """Add this prediction to the examples on the model's page, or remove it."""
    who = session.of(request)
    record = await who.caller.get(_path(request))
    method = "DELETE" if record["example"] else "PUT"
    await who.caller.send(method, f"/admin/models/{record['model']}/examples/{record['id']}")
    return _shown(await who.caller.get(_path(request)), who, marks)


def _path(request: gr.Request) -> str:
    return f"/admin/predictions/{layout.parameters(request)['id']}"


def _shown(record: dict[str, Any], who: session.Session, marks: Marks) -> list[Any]:
    over = record["status"] in _OVER
    rerun = who.may_run and record["type"] == "prediction" and not record.get("operation")
    return [
        *layout.changed([head(record), body(record)], marks),
        gr.Button(visible=who.may_run and not over),
        gr.Button(
            visible=rerun and not record["data_removed"],
            link=again(record),
        ),
        gr.Button(
            _HIDE if record["example"] else _SHOW,
            visible=who.admin and record["status"] == "succeeded" and not record["data_removed"],
        ),
        gr.Timer(active=not over),
    ]


def again(record: Mapping[str, Any]) -> str:
    """The path where it can be run again: by the version that made it, if that is there."""
    older = record["model_state"] is not None and not record["newest_version"]
    page = f"/{record['model']}/versions/{record['version']}" if older else f"/{record['model']}"
    return f"{page}?{urlencode({'from': record['id']})}"


def head(record: Mapping[str, Any]) -> str:
    """HTML of what it is and where its time went."""
    facts = {
        "Model": markup.link(f"/{record['model']}", record["model"]),
        "Account": escape(record["owner"]),
        "Token": escape(record["token_name"] or record["token"] or "unknown"),
        "Made": markup.moment(record["created_at"]),
    }
    if record["hardware"]:
        facts["Hardware"] = escape(record["hardware"])
    if record["cost"] is not None:
        facts["Cost"] = escape(markup.money(record["cost"], record["currency"]))
    if record["example"]:
        facts["Example"] = (
            f"It is shown to everyone who sees {markup.link('/' + record['model'], record['model'])}"
        )
    if record.get("deployment"):
        facts["Deployment"] = escape(record["deployment"])
    if record.get("parent"):
        facts["Part of"] = markup.link(f"/p/{record['parent']}", record["parent"])
    if record.get("parts"):
        facts["Parts"] = " ".join(markup.link(f"/p/{part}", part) for part in record["parts"])
    if record["attempts"] > 1:
        facts["Attempts"] = str(record["attempts"])
    if record.get("destination"):
        facts["Destination"] = markup.link(f"/{record['destination']}", record["destination"])
    return (
        f'<section class="part"><h2>{escape(record["id"])} '
        f"{markup.badge(record['status'])}</h2>{markup.pairs(facts)}{timeline(record)}</section>"
    )


def timeline(record: Mapping[str, Any]) -> str:
    """HTML of a bar of what its time went into."""
    phases = record["timeline"]
    total = sum(each["seconds"] for each in phases)
    segments = [
        markup.BarSegment(
            f"{each['phase']} {markup.duration(each['seconds'])}", each["seconds"], each["phase"]
        )
        for each in phases
    ]
    note = ""
    if record["status"] == "starting" and record.get("model_state"):
        note = f'<p class="note">Its model is {escape(record["model_state"])}.</p>'
    return markup.bar(segments, total, label=f"{markup.duration(total)} in all") + note


def body(record: Mapping[str, Any]) -> str:
    """Return the HTML of the prediction's error, output and remaining fields."""
    parts = []
    if record["error"]:
        parts.append(markup.section("Error", markup.text(str(record["error"]))))
    if record["data_removed"]:
        text = "Its input, output and logs were removed, as <code>retention</code> in models.yaml says."
        parts.append(f'<p class="note">{text}</p>')
    else:
        output = record.get("output")
        waiting = record["status"] not in _OVER and output is None
        parts.append(
            markup.section("Output", '<p class="note">None yet.</p>' if waiting else markup.value(output))
        )
        given = {name: markup.value(part) for name, part in record["input"].items()}
        parts.append(markup.section("Input", markup.pairs(given) if given else '<p class="note">Empty.</p>'))
        if record["logs"]:
            parts.append(markup.section("Logs", markup.text(record["logs"])))
    if record.get("metrics"):
        numbers = {name: escape(_plain(part)) for name, part in record["metrics"].items()}
        parts.append(markup.section("Metrics", markup.pairs(numbers)))
    if record.get("webhook"):
        parts.append(markup.section("Webhook", _webhook(record)))
    return "".join(parts)


def _webhook(record: Mapping[str, Any]) -> str:
    rows = [
        [
            markup.badge(each["state"]),
            str(each["attempts"]),
            markup.moment(each["ended_at"] or each["due_at"]),
            escape(each["problem"] or ""),
        ]
        for each in record["deliveries"]
    ]
    asked = ", ".join(record["webhook_events_filter"])
    empty = "Nothing is to be delivered yet: what comes before the end is sent once, and not kept."
    return (
        f"<p><code>{escape(record['webhook'])}</code></p><p class=note>of {escape(asked)}</p>"
        + markup.table(["Delivery of the end", "Attempts", "When", "Problem"], rows, empty=empty)
    )


def _plain(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
