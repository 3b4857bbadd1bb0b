"""The page of one prediction or training: facts, timeline, output, input, logs and webhook."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from appliance.domain.errors import ApplianceError, NotFound
from appliance.protocols.response_types import FileResponse
from appliance.ui import markup, output, output_views, session, snippets, template_pages
from appliance.ui.client import Caller
from appliance.ui.languages import gettext as _
from appliance.ui.media import MediaFile, media_file
from appliance.ui.state_names import state_name
from appliance.ui.watcher import ENDED

#: Input files whose type and name the page asks the API for.
_MAX_FILES: Final = 8
_FILES: Final = "/v1/files/"


async def show(request: Request) -> Response:
    try:
        record = await _record(request)
    except NotFound:
        return template_pages.respond(request, "prediction_missing.html", title=_("Prediction"), status=404)
    return template_pages.respond(
        request,
        "prediction.html",
        title=record["id"],
        code=_code(record, session.current(request).caller),
        **await _parts(request, record),
    )


async def refresh(request: Request) -> Response:
    """Return what changes while the prediction runs."""
    return template_pages.fragment("prediction_body.html", **await _parts(request, await _record(request)))


async def show_output(request: Request) -> Response:
    """Return the output alone, for the page of the model."""
    record = await _record(request)
    made = None if record["data_removed"] else record.get("output")
    if made is None:
        return template_pages.fragment("html.html", html=Markup())
    files = await _input_files(record.get("input") or {}, session.current(request).caller)
    return template_pages.fragment("html.html", html=output_views.view(made, files))


async def cancel(request: Request) -> Response:
    caller = session.current(request).caller
    record = await caller.post(f"/admin/predictions/{request.path_params['id']}/cancel")
    return template_pages.fragment("prediction_body.html", **await _parts(request, record))


async def toggle_example(request: Request) -> Response:
    caller = session.current(request).caller
    record = await _record(request)
    method = "DELETE" if record["example"] else "PUT"
    await caller.send(method, f"/admin/models/{record['model']}/examples/{record['id']}")
    return template_pages.fragment("prediction_body.html", **await _parts(request, await _record(request)))


async def rerun(request: Request) -> Response:
    """Create a prediction with the same input, and lead to its page."""
    caller = session.current(request).caller
    record = await _record(request)
    created = await caller.post("/v1/predictions", {"version": record["version"], "input": record["input"]})
    return RedirectResponse(f"{session.prefix(request)}/p/{created['id']}", 303)


async def _record(request: Request) -> dict[str, Any]:
    caller = session.current(request).caller
    found: dict[str, Any] = await caller.get(f"/admin/predictions/{request.path_params['id']}")
    return found


async def _parts(request: Request, record: dict[str, Any]) -> dict[str, Any]:
    user = session.current(request)
    ended = record["status"] in ENDED
    kept = not record["data_removed"]
    plain = record["type"] == "prediction" and not record.get("operation")
    files = await _input_files(record.get("input") or {}, user.caller) if kept else {}
    return {
        "may_cancel": user.may_run and not ended,
        "id": record["id"],
        "ended": ended,
        "head": head(record),
        "body": body(record, files),
        "again": again(record) if user.may_run and plain and kept else None,
        "rerun": user.may_run and plain and kept and ended,
        "example": record["example"],
        "may_be_example": user.admin and record["status"] == "succeeded" and kept,
    }


def again(record: Mapping[str, Any]) -> str:
    """Return the path of the model's form, which will be filled with this prediction's input."""
    older = record["model_state"] is not None and not record["newest_version"]
    page = f"/{record['model']}/versions/{record['version']}" if older else f"/{record['model']}"
    return f"{page}?{urlencode({'from': record['id']})}"


async def _input_files(given: Mapping[str, Any], caller: Caller) -> dict[str, MediaFile]:
    """Return the files of the input that the page may show, by the name of the input."""
    found = {name: media_file(url) for name, url in given.items() if isinstance(url, str)}
    uploads = {
        name: id
        for name, url in given.items()
        if isinstance(url, str) and found[name] is None and (id := _upload_id(url))
    }
    asked = list(uploads.items())[:_MAX_FILES]
    described = await asyncio.gather(*(_uploaded(id, caller) for _, id in asked))
    found |= {name: file for (name, _), file in zip(asked, described, strict=True)}
    return {name: file for name, file in found.items() if file is not None}


def _upload_id(url: str) -> str | None:
    try:
        path = urlsplit(url).path
    except ValueError:
        return None
    id = path.rpartition(_FILES)[2] if _FILES in path else ""
    return id if id.isalnum() else None


async def _uploaded(id: str, caller: Caller) -> MediaFile | None:
    try:
        file = await caller.get_as(FileResponse, f"{_FILES}{id}")
    except ApplianceError:  # of another account, or removed
        return None
    return MediaFile(file.content_type, file.name, f"./_ui/api{_FILES}{id}/download", inline=False)


def head(record: Mapping[str, Any]) -> Markup:
    facts = {
        _("Model"): markup.link(f"/{record['model']}", record["model"]),
        _("Account"): record["owner"],
        _("Token"): record["token_name"] or record["token"] or _("unknown"),
        _("Created"): markup.moment(record["created_at"]),
    }
    if record["hardware"]:
        facts[_("Hardware")] = record["hardware"]
    if record["cost"] is not None:
        facts[_("Cost")] = markup.money(record["cost"], record["currency"])
    if record["example"]:
        page = markup.link(f"/{record['model']}", record["model"])
        facts[_("Example")] = Markup(_("Shown to everyone who may see %s")) % page  # noqa: S704 - our text
    if record.get("deployment"):
        facts[_("Deployment")] = record["deployment"]
    if record.get("parent"):
        facts[_("Parent")] = markup.link(f"/p/{record['parent']}", record["parent"])
    if record.get("parts"):
        facts[_("Children")] = Markup(" ").join(
            markup.link(f"/p/{child}", child) for child in record["parts"]
        )
    if record["attempts"] > 1:
        facts[_("Attempts")] = str(record["attempts"])
    if record.get("destination"):
        facts[_("Destination")] = markup.link(f"/{record['destination']}", record["destination"])
    return markup.render(
        "prediction_head.html",
        id=record["id"],
        status=record["status"],
        facts=markup.pairs(facts),
        timeline=timeline(record),
    )


def timeline(record: Mapping[str, Any]) -> Markup:
    phases = record["timeline"]
    total = sum(each["seconds"] for each in phases)
    segments = [
        markup.BarSegment(
            f"{state_name(each['phase'])} {markup.duration(each['seconds'])}", each["seconds"], each["phase"]
        )
        for each in phases
    ]
    drawn = markup.bar(segments, total, label=_("{time} in all").format(time=markup.duration(total)))
    if record["status"] == "starting" and record.get("model_state"):
        drawn += markup.note(_("The model is %s.") % state_name(record["model_state"]))
    percent = None if record["status"] in ENDED else output.progress(record.get("logs") or "")
    if percent is not None:
        drawn += markup.render("progress.html", percent=percent)
    return drawn


def body(record: Mapping[str, Any], files: Mapping[str, MediaFile] = {}) -> Markup:
    """Return error, output, input, logs, metrics and webhook. ``files`` are input files by name."""
    parts = []
    if record["error"]:
        parts.append(markup.section(_("Error"), markup.text(str(record["error"]))))
    if record["data_removed"]:
        parts.append(
            markup.note(_("Its input, output and logs were removed, because of retention in models.yaml."))
        )
    else:
        made = record.get("output")
        waiting = record["status"] not in ENDED and made is None
        shown = markup.note(_("None yet.")) if waiting else output_views.view(made, files)
        parts.append(markup.section(_("Output"), shown))
        given = {
            name: markup.gallery([markup.file_figure(files[name])]) if name in files else markup.value(part)
            for name, part in record["input"].items()
        }
        parts.append(markup.section(_("Input"), markup.pairs(given) if given else markup.note(_("Empty."))))
        if record["logs"]:
            parts.append(markup.section(_("Logs"), markup.text(record["logs"])))
    if record.get("metrics"):
        numbers = {name: _plain(part) for name, part in record["metrics"].items()}
        parts.append(markup.section(_("Metrics"), markup.pairs(numbers)))
    if record.get("webhook"):
        parts.append(markup.section(_("Webhook"), _webhook(record)))
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
    headings = [_("Delivery of the last event"), _("Attempts"), _("When"), _("Problem")]
    nothing = markup.empty(
        _("Nothing to deliver yet"), _("Only the last event is listed; others are sent once.")
    )
    url = Markup("<p><code>{}</code></p>").format(record["webhook"])
    return url + markup.note(_("Events: %s") % events) + markup.table(headings, rows, if_empty=nothing)


def _code(record: Mapping[str, Any], caller: Caller) -> dict[str, str]:
    """Return programs that create the same prediction, by their language."""
    if record["data_removed"] or record["type"] != "prediction":
        return {}
    call = snippets.ExampleCall(
        model=record["model"],
        kind=None,
        base_url=caller.base_url,
        input=record["input"],
        output=output.RenderedOutput.DATA,
    )
    return {"curl": snippets.curl(call), "Python": snippets.python(call)}


def _plain(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


ROUTES: Final = (
    Route("/p/{id}", show),
    Route("/p/{id}/body", refresh),
    Route("/p/{id}/output", show_output),
    Route("/p/{id}/cancel", cancel, methods=["POST"]),
    Route("/p/{id}/example", toggle_example, methods=["POST"]),
    Route("/p/{id}/rerun", rerun, methods=["POST"]),
)
