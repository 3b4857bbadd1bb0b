"""The page of a model: form, example programs, examples, readme, versions and performance."""

from __future__ import annotations

import json
import statistics
from collections.abc import AsyncIterator
from typing import Any, Final

import gradio as gr
import msgspec
from markupsafe import Markup

from appliance.domain.errors import ApplianceError, NotFound
from appliance.protocols.admin_types import ApplianceStatusResponse, ModelStatus
from appliance.protocols.response_types import ModelResponse, VersionPage, VersionResponse
from appliance.ui import form, layout, markup, output, session, snippets
from appliance.ui.client import Caller
from appliance.ui.form import ModelForm, Result
from appliance.ui.pages import explore

_REFRESH_INTERVAL: Final = 3.0  # seconds between updates of the model's state


class ModelPageData(msgspec.Struct, frozen=True):
    """The data that the page of a model is built from."""

    name: str  # owner/name
    description: str
    links: tuple[tuple[str, str], ...]  # texts and URLs
    document: dict[str, Any] | None  # the version's OpenAPI document, if the model has a version
    version: str | None = None  # id of the version, if the page is not for the newest version

    @property
    def spec(self) -> str:
        """The value of ``version`` in API requests: ``owner/name`` or ``owner/name:version``."""
        return self.name if self.version is None else f"{self.name}:{self.version}"

    @classmethod
    def of(cls, model: ModelResponse, version: VersionResponse | None = None) -> ModelPageData:
        chosen = None if version is None else version.id
        version = version or model.latest_version
        urls = {
            "Source": model.github_url,
            "Paper": model.paper_url,
            "License": model.license_url,
            "Weights": model.weights_url,
        }
        links = tuple(
            (text, url)
            for text, url in urls.items()
            if url is not None and url.startswith(("https://", "http://"))  # the API accepts any text
        )
        document = None if version is None else version.openapi_schema
        name = f"{model.owner}/{model.name}"
        return cls(name, model.description or "", links, document, chosen)


class ModelPage:
    """The page of one model."""

    def __init__(self, data: ModelPageData) -> None:
        self._data = data
        self._document = data.document

    def build(self) -> gr.Blocks:
        with layout.page(self._data.name) as blocks:
            heading = gr.HTML(_heading(self._data), apply_default_css=False)
            clock = gr.Timer(_REFRESH_INTERVAL)
            gr.on([blocks.load, clock.tick], self.heading, None, heading, **layout.QUIET)
            if self._document is None:
                push = Markup("Create one with a training or with <code>appliance push</code>.")
                gr.HTML(markup.empty("This model has no version yet", push), apply_default_css=False)
                return blocks
            with gr.Tabs():
                with gr.Tab("Run"):
                    filled = playground(blocks, self._data.spec, self._document)
                self._code(filled)
                for title, made in (
                    ("Examples", self.examples),
                    ("Readme", self.readme),
                    ("Versions", self.versions),
                    ("Performance", self.performance),
                ):
                    with gr.Tab(title) as tab:
                        part = gr.Markdown() if title == "Readme" else gr.HTML(apply_default_css=False)
                        tab.select(made, None, part, **layout.QUIET)
        return blocks

    def _code(self, filled: ModelForm) -> None:
        with gr.Tab("Code") as tab, gr.Tabs():
            with gr.Tab("Python"):
                python = gr.Code(language="python", show_label=False, elem_id="code-python")
            with gr.Tab("JavaScript"):
                javascript = gr.Code(language="javascript", show_label=False, elem_id="code-javascript")
            with gr.Tab("curl"):
                curl = gr.Code(language="shell", show_label=False, elem_id="code-curl")
            with gr.Tab("OpenAI", visible=False) as openai_tab:
                openai = gr.Code(language="python", show_label=False, elem_id="code-openai")

        @layout.show_errors
        async def programs(request: gr.Request, *values: Any) -> list[Any]:
            caller = session.of(request).caller
            state = await _state(caller, self._data.name)
            call = snippets.ExampleCall(
                model=self._data.spec,
                kind=None if state is None else state.kind,
                base_url=caller.base_url,
                input=filled.read_input(values),
                output=output.kind_of(self._document or {}),
            )
            other = snippets.openai(call)
            made = [snippets.python(call), snippets.javascript(call), snippets.curl(call), other or ""]
            return [*made, gr.Tab(visible=other is not None)]

        tab.select(
            programs, filled.components, [python, javascript, curl, openai, openai_tab], **layout.QUIET
        )

    @layout.show_errors
    async def heading(self, request: gr.Request) -> str:
        user = session.of(request)
        return _heading(self._data, await _state(user.caller, self._data.name), admin=user.admin)

    @layout.show_errors
    async def readme(self, request: gr.Request) -> str:
        try:
            return await session.of(request).caller.text(f"/v1/models/{self._data.name}/readme")
        except NotFound:
            return "*This model has no readme. Name a Markdown file with the key `readme` in `models.yaml`.*"

    @layout.show_errors
    async def examples(self, request: gr.Request) -> str:
        caller = session.of(request).caller
        found = (await caller.get(f"/v1/models/{self._data.name}/examples"))["results"]
        if not found:
            how = Markup(
                "An administrator can show a prediction as an example: on the prediction's page, or with "
                "<code>appliance example {} ID</code>."
            )
            return markup.empty("There are no examples yet", how.format(self._data.name))
        kind = output.kind_of(self._document or {})
        return markup.join(_example(record, kind, self._data.name) for record in found)

    @layout.show_errors
    async def versions(self, request: gr.Request) -> str:
        path = f"/v1/models/{self._data.name}/versions"
        found = (await session.of(request).caller.get_as(VersionPage, path)).results
        rows = [
            (
                _code_link(f"/{self._data.name}/versions/{one.id}", one.id),
                markup.moment(one.created_at),
            )
            for one in found
        ]
        return markup.table(("Version", "Created"), rows, if_empty=markup.empty("There is no version yet"))

    @layout.show_errors
    async def performance(self, request: gr.Request) -> str:
        """Return the durations of the model's newest predictions that this user may see."""
        caller = session.of(request).caller
        asked = {"model": self._data.name, "status": "succeeded", "type": "prediction"}
        found = (await caller.get("/admin/predictions", **asked))["results"]
        mine = [one for one in found if "predict_time" in one.get("metrics", {})]
        if not mine:
            return markup.empty("Nothing measured yet", "Run the model to see its durations here.")
        durations = [one["metrics"]["predict_time"] for one in mine]
        colds = sum(1 for one in mine if one["metrics"].get("cold_start"))
        facts = Markup("<p>{}</p>").format(
            f"The last {len(mine)} predictions that succeeded: median {statistics.median(durations):.2f} s, "
            f"longest {max(durations):.2f} s; {colds} waited for the model to load."
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
        headings = ("Prediction", "Created", "Ran for", "Waited for a load")
        return facts + markup.table(headings, rows)


def _code_link(path: str, id: str) -> Markup:
    return markup.link(path, Markup("<code>{}</code>").format(id))


def build(data: ModelPageData) -> gr.Blocks:
    return ModelPage(data).build()


def playground(blocks: gr.Blocks, spec: str, document: dict[str, Any], *, bare: bool = False) -> ModelForm:
    """Add the form and the result of ``owner/name`` or ``owner/name:version`` to ``blocks``, side by side.

    ``?from=<id>`` in the page's URL fills the form with the input of that prediction, and ``?run=<id>`` also
    shows its output. A ``bare`` page ignores both and has no links to other pages. ``model_page.js`` puts a
    run into the address and keeps what was typed.
    """
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            filled = ModelForm(document)
            with gr.Row(elem_classes=["go"]):
                go = gr.Button("Run", variant="primary", elem_id="run")
                stop = gr.Button("Cancel", interactive=False, elem_id="cancel")
        with gr.Column(scale=1, min_width=320, elem_classes=["result"]):
            result = Result(output.kind_of(document), linked=not bare)
    running = gr.State()

    @layout.show_errors
    async def opened(request: gr.Request) -> list[Any]:
        user = session.of(request)
        button = gr.skip() if user.may_run else gr.Button("Your token cannot run models", interactive=False)
        asked = request.query_params
        earlier = asked.get("run") or asked.get("from")
        if not earlier or bare:
            return [button, *(gr.skip() for _ in filled.components)]
        record = await user.caller.get(f"/admin/predictions/{earlier}")
        return [button, *filled.values_of(record["input"])]

    @layout.show_errors
    async def resumed(request: gr.Request) -> AsyncIterator[list[Any]]:
        earlier = request.query_params.get("run")
        if not earlier or bare:
            yield [gr.skip() for _ in outputs]  # Gradio empties the components of a generator without items
            return
        user = session.of(request)
        record = await user.caller.get(f"/v1/predictions/{earlier}")
        async for id, shown in form.follow(result, record, user.caller):
            yield [id, gr.skip(), gr.Button(interactive=user.may_run and id is not None), *shown]

    @layout.show_errors
    async def started(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        unchanged = [gr.skip() for _ in result.components]
        idle = [None, gr.skip(), gr.Button(interactive=False), *unchanged]
        yield [None, gr.Button(interactive=False), gr.Button(interactive=False), *unchanged]
        try:
            async for id, shown in form.run(filled, result, spec, values, request):
                yield [id, gr.skip(), gr.Button(interactive=id is not None), *shown]
        except ApplianceError as error:
            yield [*idle[:3], form.error_status(error), *unchanged[1:]]
        else:
            yield idle

    blocks.load(opened, None, [go, *filled.components], **layout.QUIET)
    outputs = [running, go, stop, *result.components]
    blocks.load(resumed, None, outputs, **layout.QUIET)
    run = go.click(started, filled.components, outputs, trigger_mode="once", **layout.QUIET)
    # Until the event is over, Gradio ignores a click, so the button is enabled after that.
    run.then(lambda: gr.Button(interactive=True), None, go, **layout.QUIET)
    stop.click(form.cancel, running, None, **layout.QUIET)
    return filled


async def _state(caller: Caller, name: str) -> ModelStatus | None:
    models = (await caller.get_as(ApplianceStatusResponse, "/admin/status")).models
    return next((model for model in models if model.name == name), None)


def _heading(data: ModelPageData, state: ModelStatus | None = None, *, admin: bool = False) -> Markup:
    owner, _, name = data.name.partition("/")
    return markup.render(
        "model_heading.html",
        owner=owner,
        name=name if data.version is None else f"{name}:{data.version[:8]}",
        description=data.description,
        state=state and explore.badge(state),
        queued=state and state.queued,
        links=data.links,
        settings=f"/models/{data.name}/settings" if admin else None,
        newest_version=None if data.version is None else f"/{data.name}",
    )


def _example(record: dict[str, Any], kind: output.RenderedOutput, name: str) -> Markup:
    made = record.get("output")
    text = output.text_of(made) if kind is output.RenderedOutput.TEXT else ""
    if kind is output.RenderedOutput.DATA:
        text = json.dumps(made, indent=2, ensure_ascii=False)
    return markup.render(
        "example.html",
        input=json.dumps(record["input"], indent=2, ensure_ascii=False),
        text=text,
        files=output.files(made),
        path=f"/{name}?from={record['id']}",
    )
