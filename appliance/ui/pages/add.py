"""The page on which administrators add models: search, proposal, and the progress of an addition."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import ApplianceError, Unauthenticated
from appliance.protocols import api_client
from appliance.protocols.adding_types import (
    AdditionPage,
    AdditionResponse,
    CatalogueModelResponse,
    CatalogueResponse,
    DeviceFit,
    FitResponse,
    HubModelResponse,
    HubSearchResponse,
    ProposalResponse,
)
from appliance.protocols.admin_types import ReloadResponse
from appliance.ui import markup, session, template_pages
from appliance.ui.languages import gettext as _
from appliance.ui.languages import ngettext, translatable
from appliance.ui.sizes import readable_bytes
from appliance.ui.state_names import state_name

_FIELDS: Final = ("source", "name", "kind", "task", "file")
#: Sources whose files cannot be listed without a download.
_LARGE: Final = ("pypi:", "git:", "https://", "ssh://")
_STATES: Final = {
    "waiting": translatable("Waiting for other downloads"),
    "downloading": translatable("Downloading"),
    "applying": translatable("Writing models.yaml and reloading"),
    "canceled": translatable("Canceled"),
    "failed": translatable("Failed"),
}


async def show(request: Request) -> Response:
    """Show the search or, with ``source`` in the address, the proposal for a source."""
    caller, chosen = session.current(request).caller, _chosen(request)
    additions = (await caller.get_as(AdditionPage, "/admin/additions")).results
    size, asks = None, chosen["source"].startswith(_LARGE) or chosen["source"].endswith(".git")
    if chosen["source"] and ":" not in chosen["source"] and not request.query_params.get("download"):
        size = await _wheel_size(request, chosen["source"])
    downloads = bool(request.query_params.get("download"))
    given = {name: chosen[name] for name in _FIELDS if chosen[name]}
    return template_pages.respond(
        request,
        "add.html",
        title=_("Add a model"),
        chosen=chosen,
        additions=[each for each in additions if each.ended_at is None],
        back=_path("/add", query=chosen["query"], on=chosen["on"]),
        look=None if (asks or size) and not downloads else _path("/add/proposal", **given),
        large=downloads,
        size=size,
        download=_path("/add", **{**given, "download": "yes"}),
        **({"models": [], "problem": None} if chosen["source"] else await _found(request)),
    )


async def found(request: Request) -> Response:
    """Return the results of the search, and put it into the address of the page."""
    response = template_pages.fragment("add_found.html", **await _found(request))
    chosen = _chosen(request)
    address = _path("/add", query=chosen["query"], on=chosen["on"])
    response.headers["HX-Replace-Url"] = session.prefix(request) + address
    return response


async def proposal(request: Request) -> Response:
    """Return the proposal for a source, or its error, and put the choices into the address of the page."""
    caller, chosen = session.current(request).caller, _chosen(request)
    given = {name: chosen[name] for name in _FIELDS if chosen[name]}
    values: dict[str, Any] = {"proposal": None, "problem": None}
    try:
        seen = await caller.post("/admin/proposals", given)
        values |= _shown(api_client.convert(seen, ProposalResponse))
    except Unauthenticated:
        raise
    except ApplianceError as error:
        values["problem"] = error.detail
    schema = await caller.get("/admin/config/schema")
    kinds = sorted(schema["properties"]["models"]["items"]["discriminator"]["mapping"])
    response = template_pages.fragment("add_proposal.html", chosen=chosen, kinds=kinds, **values)
    downloads = {"download": "yes"} if request.query_params.get("download") else {}
    response.headers["HX-Replace-Url"] = session.prefix(request) + _path("/add", **given, **downloads)
    return response


async def start(request: Request) -> Response:
    """Start an addition and go to its page; an error is shown beside the button."""
    form = dict(parse_qsl((await request.body()).decode()))
    body: dict[str, Any] = {name: form[name] for name in (*_FIELDS, "yaml") if form.get(name)}
    body["force"] = form.get("force") == "yes"
    try:
        addition = await session.current(request).caller.post("/admin/additions", body)
    except Unauthenticated:
        raise
    except ApplianceError as error:
        return template_pages.fragment("wrong.html", problem=error.detail)
    again = {name: body[name] for name in _FIELDS if name in body}
    path = _path(f"/add/additions/{addition['id']}", **again)
    return Response(headers={"HX-Redirect": session.prefix(request) + path})


async def addition(request: Request) -> Response:
    path = f"/admin/additions/{request.path_params['id']}"
    seen = await session.current(request).caller.get_as(AdditionResponse, path)
    done = _("The model is added") if seen.action == "add" else _("The model is updated")
    chosen = _chosen(request)
    return template_pages.respond(
        request,
        "addition.html",
        title=_("Add {model}").format(model=seen.model),
        addition=seen,
        state=_(_STATES[seen.state]) if seen.state in _STATES else done,
        report=[] if seen.reload is None else report_lines(seen.reload),
        again=_path("/add", **{name: chosen[name] for name in _FIELDS})
        if seen.action == "add"
        else f"/models/{seen.model}/settings",
    )


def report_lines(report: ReloadResponse) -> list[str]:
    """Return what a reload has changed, one change a line."""
    lines = [_("Added {model}").format(model=name) for name in report.added]
    lines += [_("Removed {model}").format(model=name) for name in report.removed]
    changed = _("Changed {model}: {keys}")
    lines += [changed.format(model=name, keys=", ".join(keys)) for name, keys in report.changed.items()]
    if report.settings:
        lines.append(_("Applied {keys}").format(keys=", ".join(report.settings)))
    if report.needs_restart:
        lines.append(_("Applied after a restart: {keys}").format(keys=", ".join(report.needs_restart)))
    problem = _("Cannot be served yet: {model}: {problem}")
    return [
        *lines,
        *(problem.format(model=name, problem=why) for name, why in report.not_served.items()),
    ]


async def _found(request: Request) -> dict[str, Any]:
    caller, chosen = session.current(request).caller, _chosen(request)
    try:
        if chosen["on"] == "hub":
            if not chosen["query"]:
                return {"models": [], "problem": None}
            hub = await caller.get_as(HubSearchResponse, "/admin/hub", query=chosen["query"])
            return {"models": [_hub_card(each, chosen) for each in hub.models], "problem": None}
        listed = await caller.get_as(CatalogueResponse, "/admin/catalogue", query=chosen["query"] or None)
    except Unauthenticated:
        raise
    except ApplianceError as error:
        return {"models": [], "problem": error.detail}
    return {"models": [_catalogue_card(each, chosen) for each in listed.models], "problem": None}


def _catalogue_card(model: CatalogueModelResponse, chosen: dict[str, str]) -> dict[str, Any]:
    facts = [model.task, readable_bytes(model.size), model.licence]
    facts += [_("gated")] if model.gated else []
    facts += [] if model.tested else [_("not tried here")]
    return {
        "path": _path("/add", source=model.short, query=chosen["query"]),
        "title": model.short,
        "description": model.description,
        "state": model.fit.state,
        "fit": fit_text(model.fit),
        "facts": facts,
    }


def _hub_card(model: HubModelResponse, chosen: dict[str, str]) -> dict[str, Any]:
    facts = [model.task, model.library, model.licence or _("licence not stated")]
    downloads = ngettext(
        "{number} download in 30 days", "{number} downloads in 30 days", model.downloads
    ).format(number=f"{model.downloads:,}")
    facts += [downloads, _("gated") if model.gated else None, _("not tried here")]
    return {
        "path": _path("/add", source=model.source, query=chosen["query"], on="hub"),
        "title": model.repository,
        "description": "",
        "fit": None,
        "facts": [fact for fact in facts if fact],
    }


def fit_text(fit: FitResponse | DeviceFit) -> str:
    if fit.state == "evicts":
        return _("fits after evicting {models}").format(models=", ".join(fit.evicts))
    return state_name(fit.state) if fit.state else _("not known")


def _shown(seen: ProposalResponse) -> dict[str, Any]:
    download, free = readable_bytes(seen.download), readable_bytes(seen.disk_free)
    facts = {
        _("Found"): seen.about,
        _("Kind"): seen.kind,
        _("Options"): json.dumps(seen.options) if seen.options else _("none"),
        _("Licence"): seen.licence or _("not stated: read it at the source"),
        _("Download"): _("{size} of {free} that are free").format(size=download, free=free),
        _("Tried here"): _("yes") if seen.tested else _("no"),
    }
    if seen.gated:
        facts[_("Gated")] = _("accept the licence on the hub's page, and set HF_TOKEN")
    devices = [
        [
            each.device,
            readable_bytes(each.memory),
            readable_bytes(each.free),
            markup.badge("ready" if each.state == "fits" else each.state or "plain", fit_text(each)),
        ]
        for each in seen.devices
    ]
    memory = None if seen.memory is None else readable_bytes(seen.memory)
    add = _("Download {size} and add it").format(size=download) if seen.download else _("Add it")
    return {"proposal": seen, "facts": facts, "devices": devices, "memory": memory, "add": add}


async def _wheel_size(request: Request, short: str) -> str | None:
    """Return the size of a model of the catalogue that comes in a wheel; None for all other sources."""
    caller = session.current(request).caller
    try:
        listed = await caller.get_as(CatalogueResponse, "/admin/catalogue")
    except ApplianceError:  # shown with the proposal
        return None
    return next(
        (readable_bytes(each.size) for each in listed.models if each.short == short and each.hub is None),
        None,
    )


def _chosen(request: Request) -> dict[str, str]:
    return {name: request.query_params.get(name, "").strip() for name in (*_FIELDS, "query", "on")}


def _path(path: str, **query: str) -> str:
    given = {name: value for name, value in query.items() if value}
    return path + (f"?{urlencode(given)}" if given else "")


ROUTES: Final = (
    Route("/add", show),
    Route("/add/found", found),
    Route("/add/proposal", proposal),
    Route("/add/start", start, methods=["POST"]),
    Route("/add/additions/{id}", addition),
)
