"""The machine: who holds which memory, who waits for it, what was decided, and the buttons that change it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

import gradio as gr
import msgspec

from appliance.config import Report
from appliance.domain.units import readable_bytes
from appliance.ui import layout, markup, session
from appliance.ui.layout import Marks
from appliance.ui.markup import BarSegment

#: Seconds between looks.
PERIOD: Final = 2.0
#: Decisions that are shown.
DECISIONS: Final = 50
_SHOWN: Final = 1024**2  # bytes that a part of the disk has at least
_COLOURS: Final = 8  # of models in a bar, in style.css: c0, c1, ...


def build() -> gr.Blocks:
    """The page."""
    with layout.page("Machine") as blocks:
        devices = gr.HTML(elem_id="devices", min_height=110, apply_default_css=False)
        with gr.Row(visible=False, elem_classes="filters") as actions:
            model = gr.Dropdown(label="Model", choices=[], scale=3)
            load = gr.Button("Load", variant="primary", size="sm")
            unload = gr.Button("Unload", size="sm")
            pin = gr.Button("Pin", size="sm")
            unpin = gr.Button("Unpin", size="sm")
            reload = gr.Button("Apply models.yaml", size="sm")
        models = gr.HTML(elem_id="models", min_height=160, apply_default_css=False)
        host = gr.HTML(elem_id="host", min_height=110, apply_default_css=False)
        decisions = gr.HTML(elem_id="decisions", min_height=110, apply_default_css=False)
        marks = gr.State([])
        shown = [marks, devices, models, host, decisions]
        blocks.load(_begin, None, [actions, model], **layout.QUIET)
        blocks.load(_show, marks, shown, **layout.QUIET)
        gr.Timer(PERIOD).tick(_show, marks, shown, **layout.QUIET)
        for button, act in ((load, _load), (unload, _unload), (pin, _pin), (unpin, _unpin)):
            button.click(act, model, None, **layout.QUIET).then(_show, marks, shown, **layout.QUIET)
        reload.click(_reload, None, None, **layout.QUIET).then(_begin, None, [actions, model], **layout.QUIET)
    return blocks


@layout.told
async def _begin(request: gr.Request) -> list[Any]:
    who = session.of(request)
    names = [each["name"] for each in (await who.caller.get("/admin/status"))["models"]]
    return [gr.Row(visible=who.admin), gr.Dropdown(choices=names, value=names[0] if names else None)]


@layout.told
async def _show(marks: Marks, request: gr.Request) -> list[Any]:
    who = session.of(request)
    status = await who.caller.get("/admin/status")
    if not who.admin:
        note = '<p class="note">The rest of this page is for tokens with the admin scope.</p>'
        return layout.changed([render_devices(status), render_models(status, {}), note, ""], marks)
    residency = await who.caller.get("/admin/residency")
    made = [
        render_devices(status),
        render_models(status, {each["name"]: each for each in residency["models"]}),
        render_host(await who.caller.get("/admin/machine")),
        render_decisions(residency),
    ]
    return layout.changed(made, marks)


@layout.told
async def _load(model: str, request: gr.Request) -> None:
    gr.Info(f"{escape(model)} is loaded as soon as there is room.")
    await session.of(request).caller.post(f"/admin/models/{model}/load")


@layout.told
async def _unload(model: str, request: gr.Request) -> None:
    await session.of(request).caller.post(f"/admin/models/{model}/unload")
    gr.Info(f"{escape(model)} is unloaded once what runs on it is over.")


@layout.told
async def _pin(model: str, request: gr.Request) -> None:
    await _told_of(model, "pin", request)


@layout.told
async def _unpin(model: str, request: gr.Request) -> None:
    await _told_of(model, "unpin", request)


@layout.told
async def _reload(request: gr.Request) -> None:
    answer = await session.of(request).caller.post("/admin/reload")
    lines = str(msgspec.convert(answer, Report)).split("\n")
    gr.Info("<br>".join(map(escape, lines)), title="models.yaml is applied")


async def _told_of(model: str, act: str, request: gr.Request) -> None:
    answer = await session.of(request).caller.post(f"/admin/models/{model}/{act}")
    what = "is pinned: it stays loaded" if answer["pinned"] else "is not pinned any more"
    gr.Info(f"{escape(model)} {what}. {escape(answer['detail'])}")


def render_devices(status: Mapping[str, Any]) -> str:
    """HTML of a bar for each device."""
    state = {each["name"]: each["state"] for each in status["models"]}
    colour = {name: f"c{number % _COLOURS}" for number, name in enumerate(state)}
    parts = []
    for device in status["devices"]:
        held = sorted(device["reserved"].items(), key=lambda each: -each[1])
        segments = [
            BarSegment(
                f"{name} {readable_bytes(taken)}, {state.get(name, 'loaded')}",
                taken,
                f"{colour.get(name, 'c0')} {state.get(name, '')}",
            )
            for name, taken in held
        ]
        if device["foreign"]:
            others = f"other programs {readable_bytes(device['foreign'])}"
            segments.append(BarSegment(others, device["foreign"], "others"))
        segments.append(BarSegment(f"free {readable_bytes(device['free'])}", device["free"], "free"))
        total = device["memory"]
        held_text = f"{readable_bytes(sum(device['reserved'].values()))} of {readable_bytes(total)} reserved"
        drawn = markup.bar(segments, total, label=f"{device['name']}: {held_text}")
        note = f"{device['label']}, {held_text}"
        parts.append(markup.section(device["name"], drawn, note))
    return "".join(parts)


def render_models(status: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    """HTML of the models with their queues, and of models that cannot be served.

    ``known`` maps names of models to their entries in ``GET /admin/residency``.
    """
    rows = [
        [
            markup.link(f"/{each['name']}", each["name"]),
            markup.badge(each["state"]) + (markup.badge("pinned") if each["pinned"] else ""),
            str(each["queued"]),
            str(each["running"]),
            escape(", ".join(each["devices"])),
            _memory(each["memory"]),
            markup.duration(known.get(each["name"], {}).get("load_seconds")),
        ]
        for each in status["models"]
    ]
    empty = "<strong>No models</strong>Name some in models.yaml."
    headings = ["Model", "State", "Queued", "Running", "Devices", "Memory", "Last load"]
    shown = markup.section("Models", markup.table(headings, rows, empty=empty))
    if not status["not_served"]:
        return shown
    rows = [[escape(each["name"]), escape(each["problem"])] for each in status["not_served"]]
    return shown + markup.section("Not served", markup.table(["Model", "Problem"], rows, empty=""))


def _memory(taken: Mapping[str, Any]) -> str:
    """HTML of what a model takes, where that number comes from, and what is wrong with it."""
    much = readable_bytes(taken["bytes"]) if taken["bytes"] is not None else f"{100 * taken['share']:.0f} %"
    said = f"{much} {escape(taken['from'])}"
    if taken["exceeds"]:
        said += f", but it took {readable_bytes(taken['peak'])}"
    return said if taken["fits"] else f"{said} {markup.badge('does not fit')}"


def render_host(machine: Mapping[str, Any]) -> str:
    """HTML of main memory and of the data folder's disk."""
    memory, disk = machine["memory"], machine["disk"]
    used = memory["total"] - memory["available"]
    ram = markup.bar(
        [
            BarSegment(f"in use {readable_bytes(used)}", used, "c0"),
            BarSegment(f"available {readable_bytes(memory['available'])}", memory["available"], "free"),
        ],
        memory["total"],
        label=f"main memory: {readable_bytes(used)} of {readable_bytes(memory['total'])} in use",
    )
    parts = [
        BarSegment(f"{name} {readable_bytes(taken)}", taken, f"c{number % _COLOURS}")
        for number, (name, taken) in enumerate(disk["parts"].items())
        if taken >= _SHOWN
    ]
    elsewhere = disk["total"] - disk["free"] - sum(disk["parts"].values())
    if elsewhere > 0:
        parts.append(BarSegment(f"outside of it {readable_bytes(elsewhere)}", elsewhere, "others"))
    parts.append(BarSegment(f"free {readable_bytes(disk['free'])}", disk["free"], "free"))
    drawn = markup.bar(parts, disk["total"], label=f"disk: {readable_bytes(disk['free'])} free")
    return markup.section("Main memory", ram) + markup.section("Disk", drawn, disk["folder"])


def render_decisions(residency: Mapping[str, Any]) -> str:
    """HTML of who waits for memory, and of the last decisions, newest first."""
    waiting = [
        [
            str(each["position"]),
            markup.link(f"/{each['model']}", each["model"]),
            str(each["queued"]),
            markup.duration(each["waited"]),
            escape(", ".join(each["cleared_for_it"])),
        ]
        for each in residency["waiting"]
    ]
    queue = ""
    if waiting:
        headings = ["Next", "Model", "Predictions", "Waited", "Cleared for it"]
        queue = markup.section("Waiting for memory", markup.table(headings, waiting, empty=""))
    rows = [
        [
            markup.moment(each["at"]),
            markup.badge(each["what"]),
            escape(each["model"]),
            escape(each["why"]),
            readable_bytes(each["memory"]),
            markup.duration(each["seconds"]),
        ]
        for each in residency["decisions"][:DECISIONS]
    ]
    empty = "<strong>Nothing was decided yet</strong>The first prediction has its model loaded."
    log = markup.table(["At", "What", "Model", "Why", "Memory", "Took"], rows, empty=empty)
    return queue + markup.section("Decisions", log)
