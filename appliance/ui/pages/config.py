"""The pages on which administrators edit models.yaml, and the entry of one model."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import ApplianceError, Conflict, Unauthenticated
from appliance.protocols.adding_types import UpdateResponse
from appliance.protocols.config_types import ConfigEntryResponse, ConfigFileResponse
from appliance.ui import session, template_pages
from appliance.ui.client import Caller
from appliance.ui.languages import gettext as _


async def show(request: Request) -> Response:
    """Show the editor of a config file."""
    caller = session.current(request).caller
    name = request.query_params.get("file") or None
    file = await caller.get_as(ConfigFileResponse, "/admin/config/file", file=name)
    return template_pages.respond(
        request,
        "config.html",
        title=_("Configuration"),
        file=file,
        text=file.text,
        rest={"before": "", "after": ""},
    )


async def show_model(request: Request) -> Response:
    """Show the entry of one model, with its update and removal."""
    caller, name = session.current(request).caller, _name(request)
    values: dict[str, Any] = {"entry": None, "problem": None}
    try:
        values |= await _entry(caller, name)
    except Unauthenticated:
        raise
    except ApplianceError as error:
        values["problem"] = error.detail
    return template_pages.respond(
        request,
        "model_settings.html",
        title=_("Settings of {model}").format(model=name),
        model=name,
        **values,
    )


async def _entry(caller: Caller, name: str) -> dict[str, Any]:
    """Return the entry of a model, its file, and the text around the entry.

    Raises:
        Conflict: the file was changed between the requests for the entry and the file, twice.
    """
    for _attempt in range(2):
        entry = await caller.get_as(ConfigEntryResponse, f"/admin/models/{name}/entry")
        file = await caller.get_as(ConfigFileResponse, "/admin/config/file", file=entry.file)
        lines = file.text.split("\n")
        first, last = entry.first_line - 1, entry.last_line
        if entry.text == "".join(f"{line}\n" for line in lines[first:last]):
            before = "".join(f"{line}\n" for line in lines[:first])
            rest = {"before": before, "after": "\n".join(lines[last:])}
            return {"entry": entry, "file": file, "text": entry.text, "rest": rest}
    raise Conflict(_("{file} is being changed: load this page again.").format(file=entry.file))


async def find_update(request: Request) -> Response:
    name, values = _name(request), dict[str, Any]()
    try:
        caller = session.current(request).caller
        values["update"] = await caller.get_as(UpdateResponse, f"/admin/models/{name}/update")
    except Unauthenticated:
        raise
    except ApplianceError as error:
        return template_pages.fragment("wrong.html", problem=error.detail)
    return template_pages.fragment("model_update.html", model=name, **values)


async def update(request: Request) -> Response:
    try:
        path = f"/admin/models/{_name(request)}/update"
        addition = await session.current(request).caller.post(path)
    except Unauthenticated:
        raise
    except ApplianceError as error:
        return template_pages.fragment("wrong.html", problem=error.detail)
    return _to(request, f"/add/additions/{addition['id']}")


async def remove(request: Request) -> Response:
    form = dict(parse_qsl((await request.body()).decode()))
    prune = "?prune=true" if form.get("prune") == "yes" else ""
    try:
        await session.current(request).caller.send("DELETE", f"/admin/models/{_name(request)}{prune}")
    except Unauthenticated:
        raise
    except ApplianceError as error:
        return template_pages.fragment("wrong.html", problem=error.detail)
    return _to(request, "/explore")


def _name(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['name']}"


def _to(request: Request, path: str) -> Response:
    return Response(headers={"HX-Redirect": session.prefix(request) + path})


_SETTINGS: Final = "/models/{owner}/{name}/settings"
ROUTES: Final = (Route("/config", show),)
MODEL_ROUTES: Final = (
    Route(_SETTINGS, show_model),
    Route(f"{_SETTINGS}/update", find_update),
    Route(f"{_SETTINGS}/update", update, methods=["POST"]),
    Route(f"{_SETTINGS}/remove", remove, methods=["POST"]),
)
