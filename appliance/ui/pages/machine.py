"""The page about the machine: alerts, memory, the last hour, models, decisions, logs and disk."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import NotFound
from appliance.domain.units import readable_bytes
from appliance.protocols.admin_types import (
    ApplianceStatusResponse,
    HistoryResponse,
    MachineResponse,
    ModelMemory,
    ModelStatus,
    ResidencyResponse,
)
from appliance.ui import alerts, decisions, machine_charts, markup, session, template_pages
from appliance.ui.languages import gettext as _
from appliance.ui.markup import BarSegment
from appliance.ui.template_pages import Part

#: Number of sentences about decisions that the page lists.
DECISIONS: Final = 40
#: Samples of the last hour in a chart.
POINTS: Final = 120
_MIN_SEGMENT: Final = 1024**2  # bytes; the disk bar leaves out smaller segments
_COLOURS: Final = 8  # colours of models in style.css: c0, c1, ...


async def show(request: Request) -> Response:
    user = session.current(request)
    status = await _status(request)
    parts = {name: await make(request) for name, make in _PARTS.items() if user.admin or name in _FOR_ALL}
    names = [model.name for model in status.models]
    return template_pages.respond(request, "machine.html", title=_("Machine"), parts=parts, models=names)


async def refresh(request: Request) -> Response:
    name = request.path_params["part"]
    if name not in _PARTS:
        raise NotFound("There is no such part of the page.")
    return template_pages.refreshed(request, await _PARTS[name](request))


async def unused(request: Request) -> Response:
    """Return the weights that no model uses; finding them may take seconds, so the page asks later."""
    found = await session.current(request).caller.all_pages("/admin/weights/unused")
    weights = [(each["path"], readable_bytes(each["size"]), each["size"]) for each in found]
    total = readable_bytes(sum(each["size"] for each in found))
    return template_pages.fragment("machine_unused.html", weights=weights, total=total)


async def _status(request: Request) -> ApplianceStatusResponse:
    return await session.current(request).caller.get_as(ApplianceStatusResponse, "/admin/status")


# -- parts of the page


async def _alerts(request: Request) -> Part:
    user, status = session.current(request), await _status(request)
    if user.admin:
        machine = await user.caller.get_as(MachineResponse, "/admin/machine")
        residency = await user.caller.get_as(ResidencyResponse, "/admin/residency")
        found = alerts.find(status, machine, residency.decisions)
    else:
        found = alerts.find(status)
    return _part("alerts", 5, "machine_alerts.html", alerts=found)


async def _devices(request: Request) -> Part:
    return _part("devices", 2, "html.html", html=render_devices(await _status(request)))


async def _charts(request: Request) -> Part:
    caller = session.current(request).caller
    colours = _colours(await _status(request))
    history = await caller.get_as(HistoryResponse, "/admin/history", points=POINTS)
    return _part(
        "charts", 10, "machine_charts.html", charts=machine_charts.render(history, colours, time.time())
    )


async def _models(request: Request) -> Part:
    status, admin = await _status(request), session.current(request).admin
    active, idle = split(status.models)
    return _part(
        "models",
        2,
        "machine_models.html",
        active=render_models(active, admin=admin),
        active_count=len(active),
        idle=render_models(idle, admin=admin),
        idle_count=len(idle),
        none=not status.models,
    )


async def _disk(request: Request) -> Part:
    machine = await session.current(request).caller.get_as(MachineResponse, "/admin/machine")
    return _part("disk", 15, "html.html", html=render_main_memory_and_disk(machine))


async def _decisions(request: Request) -> Part:
    residency = await session.current(request).caller.get_as(ResidencyResponse, "/admin/residency")
    told = decisions.tell(residency.decisions)[:DECISIONS]
    return _part("decisions", 3, "machine_decisions.html", told=told, waiting=render_waiting(residency))


def _part(name: str, seconds: float, template: str, **values: object) -> Part:
    return template_pages.part(template, id=name, path=f"/machine/{name}", seconds=seconds, **values)


_FOR_ALL: Final = ("alerts", "devices", "models")
_PARTS: Final[dict[str, Callable[[Request], Awaitable[Part]]]] = {
    "alerts": _alerts,
    "devices": _devices,
    "charts": _charts,
    "models": _models,
    "disk": _disk,
    "decisions": _decisions,
}


# -- HTML


def render_devices(status: ApplianceStatusResponse) -> Markup:
    state = {each.name: each.state for each in status.models}
    colour = _colours(status)
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
        parts.append(markup.section(device.name, drawn, note, level=3))
    return markup.join(parts)


def _colours(status: ApplianceStatusResponse) -> dict[str, str]:
    """Return the colour of each model, a class of style.css."""
    return {each.name: f"c{number % _COLOURS}" for number, each in enumerate(status.models)}


def split(models: Sequence[ModelStatus]) -> tuple[list[ModelStatus], list[ModelStatus]]:
    """Return the models with something to see, and those that are not loaded and have no work."""
    active = [each for each in models if each.state != "cold" or each.queued or each.running or each.pinned]
    return active, [each for each in models if each not in active]


def render_models(models: Sequence[ModelStatus], *, admin: bool) -> Markup:
    """Return a table of models, with buttons for administrators."""
    rows = [
        [
            markup.link(f"/{each.name}", each.name),
            _state(each),
            _work(each),
            _memory(each.memory) + (f" on {', '.join(each.devices)}" if each.devices else ""),
            markup.duration(each.load_seconds),
            *([markup.render("machine_buttons.html", model=each)] if admin else []),
        ]
        for each in models
    ]
    headings = ["Model", "State", "Predictions", "Memory", "Last load", *(["Actions"] if admin else [])]
    return markup.table(headings, rows)


def _state(model: ModelStatus) -> Markup:
    pinned = markup.badge("plain", "pinned") if model.pinned else Markup()
    shown = markup.badge(model.state, "not loaded" if model.state == "cold" else model.state)
    if model.state == "draining":
        pinned += Markup('<p class="note">will unload when its current runs finish</p>')
    if model.loading_for is None:
        return shown + pinned
    progress = markup.render(
        "machine_progress.html",
        model=model.name,
        now=round(model.loading_for, 1),
        whole=model.load_seconds,
        text=remaining(model.loading_for, model.load_seconds),
    )
    return shown + pinned + progress


def remaining(lasted: float, whole: float | None) -> str:
    """Return how long a load will still take, if the last load took ``whole`` seconds."""
    if whole is None:
        return f"for {markup.duration(round(lasted))}; the first load has no estimate"
    if lasted >= whole:
        return f"for {markup.duration(round(lasted))}, longer than the last load"
    return f"about {markup.duration(max(1, round(whole - lasted)))} left"


def _work(model: ModelStatus) -> str:
    counts = [(model.running, "running"), (model.queued, "queued")]
    return ", ".join(f"{count:,} {name}" for count, name in counts if count)


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


def render_waiting(residency: ResidencyResponse) -> Markup:
    rows = [
        [
            str(each.position),
            markup.link(f"/{each.model}", each.model),
            str(each.queued),
            markup.duration(round(each.waited)),
            ", ".join(each.claimed_devices),
        ]
        for each in residency.waiting
    ]
    return markup.table(["Next", "Model", "Predictions", "Waited", "Devices being cleared"], rows)


ROUTES: Final = (
    Route("/machine", show),
    Route("/machine/unused", unused),
    Route("/machine/{part}", refresh),
)
