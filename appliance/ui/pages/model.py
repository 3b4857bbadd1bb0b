"""The page of a model or of one of its versions: form, example programs, examples, readme and more.

The scripts ``model.js`` and ``model_form.js`` run the model and follow the prediction.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
from collections.abc import Awaitable, Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import ApplianceError, MalformedBody, NotFound
from appliance.protocols.admin_types import ApplianceStatusResponse, ModelStatus
from appliance.protocols.api_client import file_urls
from appliance.protocols.response_types import ModelResponse, VersionPage, VersionResponse
from appliance.ui import fields, first_steps, markup, media, output, session, snippets, template_pages
from appliance.ui.client import Caller
from appliance.ui.cluster_facts import cluster_facts
from appliance.ui.fields import Widget
from appliance.ui.languages import gettext as _
from appliance.ui.languages import ngettext
from appliance.ui.pages import explore
from appliance.ui.template_pages import PagePart

#: Runs that the page lists below the form.
RUNS: Final = 8
#: The tabs of the page: values of ``tab`` in its address.
TABS: Final = ("run", "code", "examples", "readme", "versions", "performance")
_PATH: Final = re.compile(r"(?P<model>/[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*)(/versions/[0-9a-f]{64})?")
_SECONDS: Final = 3.0  # between updates of the model's state
_MAX_BODY: Final = 4 * 1024 * 1024  # bytes of the inputs that example programs are made of
_EXCERPT: Final = 160  # characters of a text output in the list of runs
_SEED: Final = re.compile(r"seed: (\d+)", re.IGNORECASE)
_SOUNDS: Final = re.compile("audio|speech|voice|sound", re.IGNORECASE)


class ModelPageData(msgspec.Struct, frozen=True):
    """The data that the page of a model is built from."""

    name: str  # owner/name
    description: str
    links: tuple[tuple[str, str], ...]  # texts and URLs
    document: dict[str, Any] | None  # the version's OpenAPI document, if the model has a version
    example: Mapping[str, Any]  # the input of the model's first example; empty without an example
    version: str | None = None  # id of the version, if the page is not for the newest version

    @property
    def spec(self) -> str:
        """The value of ``version`` in API requests: ``owner/name`` or ``owner/name:version``."""
        return self.name if self.version is None else f"{self.name}:{self.version}"

    @property
    def path(self) -> str:
        return f"/{self.name}" if self.version is None else f"/{self.name}/versions/{self.version}"

    @classmethod
    def of(cls, model: ModelResponse, version: VersionResponse | None = None) -> ModelPageData:
        chosen = None if version is None else version.id
        version = version or model.latest_version
        urls = {
            _("Source"): model.github_url,
            _("Paper"): model.paper_url,
            _("License"): model.license_url,
            _("Weights"): model.weights_url,
        }
        links = tuple(
            (text, url)
            for text, url in urls.items()
            if url is not None and url.startswith(("https://", "http://"))  # the API accepts any text
        )
        document = None if version is None else version.openapi_schema
        name = f"{model.owner}/{model.name}"
        example = None if model.default_example is None else model.default_example.input
        return cls(name, model.description or "", links, document, example or {}, chosen)


async def show(request: Request) -> Response:
    user = session.current(request)
    data = await _data(request)
    owner, _slash, name = data.name.partition("/")
    found = await _status(user.caller, data.name)
    values: dict[str, Any] = {
        "data": data,
        "owner": owner,
        "name": name if data.version is None else f"{name}:{data.version[:8]}",
        "settings": f"/models/{data.name}/settings" if user.admin else None,
        "state": _state(data, found),
        "tab": "run",
    }
    if data.document is not None:
        chosen = request.query_params.get("tab", "run")
        values["tab"] = chosen if chosen in TABS else "run"
        example = data.example or ({} if found is None else first_steps.example(found.kind))
        values |= await _form(request, data, data.document, example)
        make = _PANELS.get(chosen)
        values["panel"] = None if make is None else await make(user.caller, data)
    return template_pages.respond(request, "model.html", title=data.name, **values)


async def state(request: Request) -> Response:
    data = await _data(request)
    found = await _status(session.current(request).caller, data.name)
    return template_pages.refreshed(request, _state(data, found))


async def panel(request: Request) -> Response:
    """Return the content of a tab."""
    make = _PANELS.get(request.path_params["panel"])
    if make is None:
        raise NotFound(_("There is no such part of the page."))
    found = await make(session.current(request).caller, await _data(request))
    return template_pages.fragment("html.html", html=found)


async def code(request: Request) -> Response:
    """Return example programs for the inputs in the body; ``files`` has names of uploads by their URL."""
    caller = session.current(request).caller
    data = await _data(request)
    body = await request.body()
    if len(body) > _MAX_BODY:
        raise MalformedBody(_("The inputs are too long to be shown as code."))
    try:
        asked = json.loads(body)
        given, files = dict(asked["input"]), dict(asked["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedBody("The body must be JSON with the objects input and files.") from error
    status = await _status(caller, data.name)
    call = snippets.ExampleCall(
        model=data.spec,
        kind=None if status is None else status.kind,
        base_url=caller.base_url,
        input={name: _named(value, files) for name, value in given.items()},
        output=output.kind_of(data.document or {}),
    )
    made = [
        ("python", "Python", snippets.python(call)),
        ("javascript", "JavaScript", snippets.javascript(call)),
        ("curl", "curl", snippets.curl(call)),
        ("openai", "OpenAI", snippets.openai(call)),
    ]
    programs = [each for each in made if each[2] is not None]
    return template_pages.fragment("model_code.html", programs=programs)


async def runs(request: Request) -> Response:
    """Return the newest predictions of this account with this model, with what they made."""
    user, data = session.current(request), await _data(request)
    asked = {"model": data.name, "type": "prediction", "owner": user.username, "limit": 2 * RUNS}
    listed = (await user.caller.get("/admin/predictions", **asked))["results"]
    ids = [each["id"] for each in listed if not each.get("operation")][:RUNS]
    records = await asyncio.gather(*(user.caller.get(f"/admin/predictions/{id}") for id in ids))
    found = [_run(each) for each in records if not each["data_removed"]]
    return template_pages.fragment("model_runs.html", runs=found, may_run=user.may_run)


async def _data(request: Request) -> ModelPageData:
    """Return what the page shows of the model.

    Raises:
        NotFound: the path is not that of a model, or this user may not see the model.
    """
    given = request.path_params
    version = f"/versions/{given['version']}" if "version" in given else ""
    match = _PATH.fullmatch(f"/{given['owner']}/{given['name']}{version}")
    if match is None:
        raise NotFound(_("There is no such page."))
    caller = session.current(request).caller
    described = await caller.get_as(ModelResponse, f"/v1/models{match['model']}")
    if not version:
        return ModelPageData.of(described)
    chosen = await caller.get_as(VersionResponse, f"/v1/models{match['model']}{version}")
    return ModelPageData.of(described, chosen)


async def _status(caller: Caller, name: str) -> ModelStatus | None:
    models = (await caller.get_as(ApplianceStatusResponse, "/admin/status")).models
    return next((model for model in models if model.name == name), None)


def _state(data: ModelPageData, found: ModelStatus | None) -> PagePart:
    return template_pages.part(
        "model_state.html",
        id="model-state",
        path=f"{data.path}/state",
        seconds=_SECONDS,
        state=found and explore.badge(found),
        queued=found.queued if found is not None else 0,
        facts=[] if found is None else cluster_facts(found),
    )


async def _form(
    request: Request, data: ModelPageData, document: Mapping[str, Any], example: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the template needs for the form.

    The form has the inputs of the run in the page's address; without a run, those of ``example``.
    """
    found = fields.fields(document)
    earlier, problem = await _earlier_input(request)
    given = example if earlier is None else earlier
    values = {}
    for field in found:
        value = field.default if field.widget is Widget.SECRET else given.get(field.name, field.default)
        values[field.name] = _text(field, value)
    kind = output.kind_of(document)
    return {
        "fields": found,
        "values": values,
        "records": {each.name for each in found if _SOUNDS.search(f"{each.name} {each.description}")},
        "kind": kind.value,
        "problem": problem,
        "script": {
            "model": data.name,
            "version": data.spec,
            "path": data.path,
            "kind": kind.value,
            "fields": [msgspec.to_builtins(field) for field in found],
        },
    }


def _text(field: fields.FormField, value: Any) -> Any:
    """Return what the control of ``field`` shows for ``value``, as ``shown`` of ``inputs.js`` does."""
    match value:
        case list() if field.widget is Widget.FILES:
            return "\n".join(map(str, value))
        case float() if value.is_integer():
            return int(value)
    return field.to_widget(value)


async def _earlier_input(request: Request) -> tuple[dict[str, Any] | None, str]:
    """Return the input of the prediction in the page's address, if any, and what is wrong with it."""
    asked = request.query_params
    earlier = asked.get("run") or asked.get("from")
    if not earlier:
        return None, ""
    try:
        record = await session.current(request).caller.get(f"/admin/predictions/{earlier}")
    except ApplianceError as error:
        return {}, error.detail
    return record["input"] or {}, ""


def _named(value: Any, files: Mapping[str, str]) -> Any:
    """Return ``value`` with the URLs of this page's uploads replaced by their files."""
    match value:
        case str() if value in files:
            return snippets.LocalFile(PurePosixPath(str(files[value])).name)
        case list():
            return [_named(part, files) for part in value]
    return value


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    made, given = record.get("output"), record["input"] or {}
    shown = [file for url in file_urls(made) if (file := media.media_file(url)) is not None]
    used = _SEED.search(record.get("logs") or "")
    text = "" if shown else output.text_of(made)
    return {
        "id": record["id"],
        "status": record["status"],
        "created_at": record["created_at"],
        "files": [(file, url) for file, url in zip(shown, file_urls(made), strict=False)][:4],
        "text": text,
        "excerpt": text[:_EXCERPT] + ("…" if len(text) > _EXCERPT else ""),
        "seed": given.get("seed", used[1] if used else None),
        "input": json.dumps(given, ensure_ascii=False),
    }


# -- the tabs


async def _examples(caller: Caller, data: ModelPageData) -> Markup:
    found = (await caller.get(f"/v1/models/{data.name}/examples"))["results"]
    if not found:
        how = Markup(  # noqa: S704 - our text
            _(
                "An administrator can show a prediction as an example: on the prediction's page, or with "
                "<code>appliance example %s ID</code>."
            )
        )
        return markup.empty(_("There are no examples yet"), how % data.name)
    kind = output.kind_of(data.document or {})
    return markup.join(_example(record, kind, data.path) for record in found)


def _example(record: Mapping[str, Any], kind: output.RenderedOutput, path: str) -> Markup:
    made = record.get("output")
    text = output.text_of(made) if kind is output.RenderedOutput.TEXT else ""
    if kind is output.RenderedOutput.DATA:
        text = json.dumps(made, indent=2, ensure_ascii=False)
    return markup.render(
        "example.html",
        input=json.dumps(record["input"], indent=2, ensure_ascii=False),
        text=text,
        files=output.files(made),
        path=f"{path}?from={record['id']}",
    )


async def _readme(caller: Caller, data: ModelPageData) -> Markup:
    """Return the readme as text, which ``model.js`` shows as Markdown."""
    try:
        found = await caller.text(f"/v1/models/{data.name}/readme")
    except NotFound:
        how = Markup(  # noqa: S704 - our text
            _("Name a Markdown file with the key <code>readme</code> in <code>models.yaml</code>.")
        )
        return markup.empty(_("This model has no readme"), how)
    title = Markup('<h2 class="hidden-text">{}</h2>').format(_("Readme"))
    return title + Markup('<pre class="text markdown-source" tabindex="0">{}</pre>').format(found)


async def _versions(caller: Caller, data: ModelPageData) -> Markup:
    found = (await caller.get_as(VersionPage, f"/v1/models/{data.name}/versions")).results
    rows = [
        (_code_link(f"/{data.name}/versions/{one.id}", one.id), markup.moment(one.created_at))
        for one in found
    ]
    nothing = markup.empty(_("There is no version yet"))
    return markup.table((_("Version"), _("Created")), rows, if_empty=nothing)


async def _performance(caller: Caller, data: ModelPageData) -> Markup:
    """Return the durations of the model's newest predictions that this user may see."""
    asked = {"model": data.name, "status": "succeeded", "type": "prediction"}
    found = (await caller.get("/admin/predictions", **asked))["results"]
    mine = [one for one in found if "predict_time" in one.get("metrics", {})]
    if not mine:
        return markup.empty(_("Nothing measured yet"), _("Run the model to see its durations here."))
    durations = [one["metrics"]["predict_time"] for one in mine]
    cold_starts = sum(1 for one in mine if one["metrics"].get("cold_start"))
    facts = ngettext(
        "The last successful prediction took {median} s; predictions that waited for a load: {cold_starts}.",
        "The last {count} successful predictions: median {median} s, longest {longest} s; predictions that "
        "waited for a load: {cold_starts}.",
        len(mine),
    ).format(
        count=len(mine),
        median=f"{statistics.median(durations):.2f}",
        longest=f"{max(durations):.2f}",
        cold_starts=cold_starts,
    )
    rows = [
        (
            _code_link(f"/p/{one['id']}", one["id"]),
            markup.moment(one["created_at"]),
            f"{one['metrics']['predict_time']:.2f} s",
            f"{one['metrics'].get('cold_start', 0):.1f} s",
        )
        for one in mine[:20]
    ]
    headings = (_("Prediction"), _("Created"), _("Ran for"), _("Waited for a load"))
    return Markup("<p>{}</p>").format(facts) + markup.table(headings, rows)


def _code_link(path: str, id: str) -> Markup:
    return markup.link(path, Markup("<code>{}</code>").format(id))


_PANELS: Final[dict[str, Callable[[Caller, ModelPageData], Awaitable[Markup]]]] = {
    "examples": _examples,
    "readme": _readme,
    "versions": _versions,
    "performance": _performance,
}
#: The page is the last one, because its path matches all paths with two segments.
ROUTES: Final = tuple(
    Route(root + path, handler, methods=[method])
    for root in ("/{owner}/{name}", "/{owner}/{name}/versions/{version}")
    for path, handler, method in (
        ("", show, "GET"),
        ("/state", state, "GET"),
        ("/code", code, "POST"),
        ("/runs", runs, "GET"),
        ("/panels/{panel}", panel, "GET"),
    )
)
