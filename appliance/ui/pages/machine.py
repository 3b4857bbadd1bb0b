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
from appliance.protocols.admin_types import (
    ApplianceStatusResponse,
    HistoryResponse,
    MachineResponse,
    ModelStatus,
    ResidencyResponse,
)
from appliance.ui import alerts, decisions, machine_charts, markup, session, template_pages
from appliance.ui.cluster_facts import cluster_facts
from appliance.ui.languages import gettext as _
from appliance.ui.languages import ngettext
from appliance.ui.markup import BarSegment
from appliance.ui.sizes import readable_bytes
from appliance.ui.state_names import state_name
from appliance.ui.template_pages import PagePart

#: Number of sentences about decisions that the page lists.
DECISIONS: Final = 40
#: Samples of the last hour in a chart.
POINTS: Final = 120
#: Samples of the last hour for the alerts, one a minute.
MINUTES: Final = 60
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
        raise NotFound(_("There is no such part of the page."))
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


async def _alerts(request: Request) -> PagePart:
    user, status = session.current(request), await _status(request)
    if user.admin:
        machine = await user.caller.get_as(MachineResponse, "/admin/machine")
        residency = await user.caller.get_as(ResidencyResponse, "/admin/residency")
        history = await user.caller.get_as(HistoryResponse, "/admin/history", points=MINUTES)
        found = alerts.find(status, machine, residency.decisions, history)
    else:
        found = alerts.find(status)
    return _part("alerts", 5, "alerts.html", alerts=found)


async def _devices(request: Request) -> PagePart:
    return _part("devices", 2, "html.html", html=render_devices(await _status(request)))


async def _charts(request: Request) -> PagePart:
    caller = session.current(request).caller
    colours = _colours(await _status(request))
    history = await caller.get_as(HistoryResponse, "/admin/history", points=POINTS)
    return _part(
        "charts", 10, "machine_charts.html", charts=machine_charts.render(history, colours, time.time())
    )


async def _models(request: Request) -> PagePart:
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


async def _disk(request: Request) -> PagePart:
    machine = await session.current(request).caller.get_as(MachineResponse, "/admin/machine")
    return _part("disk", 15, "html.html", html=render_main_memory_and_disk(machine))


async def _decisions(request: Request) -> PagePart:
    residency = await session.current(request).caller.get_as(ResidencyResponse, "/admin/residency")
    told = decisions.sentences(residency.decisions)[:DECISIONS]
    return _part("decisions", 3, "machine_decisions.html", told=told, waiting=render_waiting(residency))


def _part(name: str, seconds: float, template: str, **values: object) -> PagePart:
    return template_pages.part(template, id=name, path=f"/machine/{name}", seconds=seconds, **values)


_FOR_ALL: Final = ("alerts", "devices", "models")
_PARTS: Final[dict[str, Callable[[Request], Awaitable[PagePart]]]] = {
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
    parts = [] if status.runs_models else [_runs_no_models()]
    for device in status.devices:
        held = sorted(device.reserved.items(), key=lambda each: -each[1])
        segments = [
            BarSegment(
                f"{name} {readable_bytes(taken)}, {state_name(state.get(name, 'loaded'))}",
                taken,
                f"{colour.get(name, 'c0')} {state.get(name, '')}",
            )
            for name, taken in held
        ]
        if device.foreign:
            others = _("other programs {size}").format(size=readable_bytes(device.foreign))
            segments.append(BarSegment(others, device.foreign, "others"))
        segments.append(BarSegment(_free(device.free), device.free, "free"))
        total = device.memory
        reserved = readable_bytes(sum(device.reserved.values()))
        held_text = _("{size} of {total} reserved").format(size=reserved, total=readable_bytes(total))
        drawn = markup.bar(segments, total, label=f"{device.name}: {held_text}")
        note = f"{device.label}, {held_text}"
        parts.append(markup.section(device.name, drawn, note, level=3))
    return markup.join(parts)


def _runs_no_models() -> Markup:
    return markup.note(_("This machine runs no models: the nodes of its cluster do."))


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
            _memory(each),
            markup.duration(each.load_seconds),
            *([markup.render("machine_buttons.html", model=each)] if admin else []),
        ]
        for each in models
    ]
    headings = [_("Model"), _("State"), _("Predictions"), _("Memory"), _("Last load")]
    headings += [_("Actions")] if admin else []
    return markup.table(headings, rows)


def _state(model: ModelStatus) -> Markup:
    pinned = markup.badge("plain", _("pinned")) if model.pinned else Markup()
    shown = markup.badge(model.state)
    if model.state == "draining":
        pinned += markup.note(_("will unload when its current runs finish"))
    for fact in cluster_facts(model):
        pinned += markup.note(fact)
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
        text, shown = _("for {time}; the first load has no estimate"), lasted
    elif lasted >= whole:
        text, shown = _("for {time}, longer than the last load"), lasted
    else:
        text, shown = _("about {time} left"), max(1, whole - lasted)
    return text.format(time=markup.duration(round(shown)))


def _work(model: ModelStatus) -> str:
    running = ngettext("{number} running", "{number} running", model.running)
    queued = ngettext("{number} queued", "{number} queued", model.queued)
    counts = [(model.running, running), (model.queued, queued)]
    return ", ".join(text.format(number=f"{count:,}") for count, text in counts if count)


def _free(size: int) -> str:
    return _("free {size}").format(size=readable_bytes(size))


def _memory(model: ModelStatus) -> Markup:
    """Return the model's memory as HTML: size, source of the size, and a warning if more was used."""
    taken = model.memory
    much = f"{100 * (taken.share or 0):.0f} %" if taken.bytes is None else readable_bytes(taken.bytes)
    said = escape(f"{much} {state_name(taken.origin)}")
    if taken.exceeds and taken.peak is not None:
        said += ", " + _("but it used {size}").format(size=readable_bytes(taken.peak))
    if not taken.fits:
        said += " " + markup.badge("does not fit")
    if model.devices:
        said += " " + _("on {devices}").format(devices=", ".join(model.devices))
    return said


def render_main_memory_and_disk(machine: MachineResponse) -> Markup:
    memory, disk = machine.memory, machine.disk
    used = memory.total - memory.available
    ram = markup.bar(
        [
            BarSegment(_("in use {size}").format(size=readable_bytes(used)), used, "c0"),
            BarSegment(
                _("available {size}").format(size=readable_bytes(memory.available)), memory.available, "free"
            ),
        ],
        memory.total,
        label=_("main memory: {size} of {total} in use").format(
            size=readable_bytes(used), total=readable_bytes(memory.total)
        ),
    )
    parts = [
        BarSegment(f"{state_name(name)} {readable_bytes(taken)}", taken, f"c{number % _COLOURS}")
        for number, (name, taken) in enumerate(disk.parts.items())
        if taken >= _MIN_SEGMENT
    ]
    elsewhere = disk.total - disk.free - sum(disk.parts.values())
    if elsewhere > 0:
        outside = _("outside the data folder {size}").format(size=readable_bytes(elsewhere))
        parts.append(BarSegment(outside, elsewhere, "others"))
    parts.append(BarSegment(_free(disk.free), disk.free, "free"))
    label = _("disk: {size} free").format(size=readable_bytes(disk.free))
    drawn = markup.bar(parts, disk.total, label=label)
    return markup.section(_("Main memory"), ram) + markup.section(_("Disk"), drawn, disk.folder)


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
    return markup.table(
        [_("Next"), _("Model"), _("Predictions"), _("Waited"), _("Devices being cleared")], rows
    )


ROUTES: Final = (
    Route("/machine", show),
    Route("/machine/unused", unused),
    Route("/machine/{part}", refresh),
)
