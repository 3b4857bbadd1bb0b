"""The page about the machine: memory, waiting models, past decisions, and buttons for loading models."""

from __future__ import annotations

from typing import Any, Final

import gradio as gr
from markupsafe import Markup, escape

from appliance.config import Report
from appliance.domain.units import readable_bytes
from appliance.protocols import api_client
from appliance.protocols.admin_types import (
    ApplianceStatusResponse,
    MachineResponse,
    ModelMemory,
    ModelStateResponse,
    ResidencyResponse,
)
from appliance.ui import layout, markup, session
from appliance.ui.layout import Checksums
from appliance.ui.markup import BarSegment

#: Seconds between updates.
REFRESH_INTERVAL: Final = 2.0
#: Number of decisions that the page lists.
DECISIONS: Final = 50
_MIN_SEGMENT: Final = 1024**2  # bytes; the disk bar leaves out smaller segments
_COLOURS: Final = 8  # colours of models in style.css: c0, c1, ...


def build() -> gr.Blocks:
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
        checksums = gr.State([])
        shown = [checksums, devices, models, host, decisions]
        blocks.load(_begin, None, [actions, model], **layout.QUIET)
        blocks.load(_show, checksums, shown, **layout.QUIET)
        gr.Timer(REFRESH_INTERVAL).tick(_show, checksums, shown, **layout.QUIET)
        for button, act in ((load, _load), (unload, _unload), (pin, _pin), (unpin, _unpin)):
            button.click(act, model, None, **layout.QUIET).then(_show, checksums, shown, **layout.QUIET)
        reload.click(_reload, None, None, **layout.QUIET).then(_begin, None, [actions, model], **layout.QUIET)
    return blocks


@layout.show_errors
async def _begin(request: gr.Request) -> list[Any]:
    user = session.of(request)
    status = await user.caller.get_as(ApplianceStatusResponse, "/admin/status")
    names = [each.name for each in status.models]
    return [gr.Row(visible=user.admin), gr.Dropdown(choices=names, value=names[0] if names else None)]


@layout.show_errors
async def _show(checksums: Checksums, request: gr.Request) -> list[Any]:
    user = session.of(request)
    status = await user.caller.get_as(ApplianceStatusResponse, "/admin/status")
    if not user.admin:
        note = markup.note("The rest of this page needs a token with the scope admin.")
        return layout.skip_unchanged([render_devices(status), render_models(status), note, ""], checksums)
    residency = await user.caller.get_as(ResidencyResponse, "/admin/residency")
    made = [
        render_devices(status),
        render_models(status),
        render_main_memory_and_disk(await user.caller.get_as(MachineResponse, "/admin/machine")),
        render_decisions(residency),
    ]
    return layout.skip_unchanged(made, checksums)


@layout.show_errors
async def _load(model: str, request: gr.Request) -> None:
    gr.Info(f"{escape(model)} will be loaded as soon as there is memory for it.")
    await session.of(request).caller.post(f"/admin/models/{model}/load")


@layout.show_errors
async def _unload(model: str, request: gr.Request) -> None:
    await session.of(request).caller.post(f"/admin/models/{model}/unload")
    gr.Info(f"{escape(model)} will be unloaded when its running predictions have ended.")


@layout.show_errors
async def _pin(model: str, request: gr.Request) -> None:
    await _set_pinned(model, "pin", request)


@layout.show_errors
async def _unpin(model: str, request: gr.Request) -> None:
    await _set_pinned(model, "unpin", request)


@layout.show_errors
async def _reload(request: gr.Request) -> None:
    answer = await session.of(request).caller.post("/admin/reload")
    lines = str(api_client.convert(answer, Report)).split("\n")
    gr.Info(str(Markup("<br>").join(lines)), title="models.yaml is applied")


async def _set_pinned(model: str, action: str, request: gr.Request) -> None:
    response = await session.of(request).caller.post(f"/admin/models/{model}/{action}")
    answer = api_client.convert(response, ModelStateResponse)
    state = "is pinned: it stays loaded" if answer.pinned else "is no longer pinned"
    gr.Info(f"{escape(model)} {state}. {escape(answer.detail or '')}")


def render_devices(status: ApplianceStatusResponse) -> Markup:
    state = {each.name: each.state for each in status.models}
    colour = {name: f"c{number % _COLOURS}" for number, name in enumerate(state)}
    parts = []
    for device in status.devices:
        held = sorted(device.reserved.items(), key=lambda each: -each[1])
        segments = [
            BarSegment(
                f"{name} {readable_bytes(taken)}, {state.get(name, 'loaded')}",
                taken,
                f"{colour.get(name, 'c0')} {state.get(name, '')}",
            )
            for name, taken in held
        ]
        if device.foreign:
            others = f"other programs {readable_bytes(device.foreign)}"
            segments.append(BarSegment(others, device.foreign, "others"))
        segments.append(BarSegment(f"free {readable_bytes(device.free)}", device.free, "free"))
        total = device.memory
        held_text = f"{readable_bytes(sum(device.reserved.values()))} of {readable_bytes(total)} reserved"
        drawn = markup.bar(segments, total, label=f"{device.name}: {held_text}")
        note = f"{device.label}, {held_text}"
        parts.append(markup.section(device.name, drawn, note))
    return markup.join(parts)


def render_models(status: ApplianceStatusResponse) -> Markup:
    """Return a table of the models, and a table of the models that cannot be served."""
    rows = [
        [
            markup.link(f"/{each.name}", each.name),
            markup.badge(each.state) + (markup.badge("pinned") if each.pinned else ""),
            str(each.queued),
            str(each.running),
            ", ".join(each.devices),
            _memory(each.memory),
            markup.duration(each.load_seconds),
        ]
        for each in status.models
    ]
    nothing = markup.empty("No models", "Add models to models.yaml.")
    headings = ["Model", "State", "Queued", "Running", "Devices", "Memory", "Last load"]
    shown = markup.section("Models", markup.table(headings, rows, if_empty=nothing))
    if not status.not_served:
        return shown
    rows = [[each.name, each.problem] for each in status.not_served]
    return shown + markup.section("Not served", markup.table(["Model", "Problem"], rows))


def _memory(taken: ModelMemory) -> Markup:
    """Return the model's memory as HTML: size, source of the size, and a warning if more was used."""
    much = f"{100 * (taken.share or 0):.0f} %" if taken.bytes is None else readable_bytes(taken.bytes)
    said = escape(f"{much} {taken.origin}")
    if taken.exceeds and taken.peak is not None:
        said += f", but it used {readable_bytes(taken.peak)}"
    return said if taken.fits else said + " " + markup.badge("does not fit")


def render_main_memory_and_disk(machine: MachineResponse) -> Markup:
    memory, disk = machine.memory, machine.disk
    used = memory.total - memory.available
    ram = markup.bar(
        [
            BarSegment(f"in use {readable_bytes(used)}", used, "c0"),
            BarSegment(f"available {readable_bytes(memory.available)}", memory.available, "free"),
        ],
        memory.total,
        label=f"main memory: {readable_bytes(used)} of {readable_bytes(memory.total)} in use",
    )
    parts = [
        BarSegment(f"{name} {readable_bytes(taken)}", taken, f"c{number % _COLOURS}")
        for number, (name, taken) in enumerate(disk.parts.items())
        if taken >= _MIN_SEGMENT
    ]
    elsewhere = disk.total - disk.free - sum(disk.parts.values())
    if elsewhere > 0:
        parts.append(BarSegment(f"outside the data folder {readable_bytes(elsewhere)}", elsewhere, "others"))
    parts.append(BarSegment(f"free {readable_bytes(disk.free)}", disk.free, "free"))
    drawn = markup.bar(parts, disk.total, label=f"disk: {readable_bytes(disk.free)} free")
    return markup.section("Main memory", ram) + markup.section("Disk", drawn, disk.folder)


def render_decisions(residency: ResidencyResponse) -> Markup:
    waiting = [
        [
            str(each.position),
            markup.link(f"/{each.model}", each.model),
            str(each.queued),
            markup.duration(each.waited),
            ", ".join(each.claimed_devices),
        ]
        for each in residency.waiting
    ]
    queue = Markup()
    if waiting:
        headings = ["Next", "Model", "Predictions", "Waited", "Devices being cleared"]
        queue = markup.section("Waiting for memory", markup.table(headings, waiting))
    rows = [
        [
            markup.moment(each.at),
            markup.badge(each.kind),
            each.model,
            each.reason,
            readable_bytes(each.memory),
            markup.duration(each.seconds),
        ]
        for each in residency.decisions[:DECISIONS]
    ]
    nothing = markup.empty("No decisions yet", "A model is loaded at its first prediction.")
    log = markup.table(["At", "What", "Model", "Why", "Memory", "Took"], rows, if_empty=nothing)
    return queue + markup.section("Decisions", log)
