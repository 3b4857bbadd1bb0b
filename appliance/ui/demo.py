"""``python -m appliance.ui.demo owner/name ...``: serve a page for each model on a port of its own.

Any web site may show the pages in a frame. Everyone who can open them may run these models, and nothing
else. The token never leaves this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import gradio as gr
import uvicorn
from gradio.utils import get_upload_folder
from markupsafe import Markup
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from appliance.domain.errors import ApplianceError
from appliance.domain.local_url import local_url
from appliance.observability import logs
from appliance.protocols.response_types import ModelResponse, PredictionResponse
from appliance.ui import form, gradio_page, markup, output, session
from appliance.ui.client import Api
from appliance.ui.form import ModelForm, Result
from appliance.ui.output import RenderedOutput
from appliance.ui.page_app import Frontend, PageApp
from appliance.ui.pages.model import ModelPageData
from appliance.ui.request_bodies import BodyLimits, RequestBodies
from appliance.ui.session import UserSession
from appliance.ui.static_files import StaticScriptsAndStyles
from appliance.ui.visitors import Visitors

#: Environment variables for the token; the first that is set is used.
TOKEN: Final = ("APPLIANCE_TOKEN", "REPLICATE_API_TOKEN")
#: How often the largest upload fits into the space for uploads of all visitors.
_UPLOADS: Final = 20
_SAFE: Final = frozenset({"GET", "HEAD"})
_REQUEST_HEADERS: Final = ("range", "if-range", "if-none-match")
_RESPONSE_HEADERS: Final = (
    *("content-type", "content-length", "content-range", "accept-ranges", "content-disposition", "etag"),
    *("content-security-policy", "x-content-type-options", "cache-control"),
)


class DemoLimits(NamedTuple):
    """What visitors may do at most."""

    runs_per_hour: int | None = None  # of one visitor; None: no limit
    max_upload: int = 10**8  # bytes of files uploaded together; the appliance has a limit of its own
    max_input: int = 2**20  # bytes of the other inputs together

    @property
    def bodies(self) -> BodyLimits:
        names = ("--max-input of the demo", "--max-upload of the demo", f"{_UPLOADS} times --max-upload")
        return BodyLimits(self.max_input, self.max_upload, _UPLOADS * self.max_upload, *names)


class Demo:
    """The ASGI application of the demo."""

    def __init__(
        self,
        api: Api,
        secret: str,
        pages: Mapping[str, PageApp],
        limits: DemoLimits = DemoLimits(),  # noqa: B008 - immutable
    ) -> None:
        """``pages`` has the page of each model by ``owner/name``. A single page is at ``/``."""
        self._api = api
        self._secret = secret
        self._pages = dict(pages) if len(pages) > 1 else dict.fromkeys([""], *pages.values())
        self._visitors = Visitors(limits.runs_per_hour)
        self._bodies = RequestBodies(Path(get_upload_folder()), limits.bodies)
        self._frontend = Frontend()
        self._static = StaticScriptsAndStyles()

    @classmethod
    async def create(
        cls,
        api: Api,
        secret: str,
        names: Sequence[str],
        limits: DemoLimits = DemoLimits(),  # noqa: B008 - immutable
    ) -> Demo:
        """Create the pages of the models ``names``. All visitors run the models with the token ``secret``.

        Raises:
            ApplianceError: a model does not exist or has no version.
        """
        caller = api.caller(secret, api.url)
        pages: dict[str, PageApp] = {}
        for name in names:
            described = await caller.get_as(ModelResponse, f"/v1/models/{name}")
            data = ModelPageData.of(described)
            if data.name in pages:
                continue  # named twice, or by an alias
            blocks = build(data, described.default_example)
            pages[data.name] = await PageApp(blocks, limits.max_upload).start()
        return cls(api, secret, pages, limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = request.url.path
        for files in (self._frontend, self._static):
            if files.has(path):
                await files(scope, receive, send)
                return
        origin = session.origin(request)
        if request.method not in _SAFE and request.headers.get("origin") not in {None, origin}:
            refusal = JSONResponse({"detail": "Requests from other sites are refused."}, 403)
            await refusal(scope, receive, send)
            return
        before_run = partial(self._visitors.count, "" if request.client is None else request.client.host)
        caller = self._api.caller(self._secret, self._api.url, before_run)
        scope[session.SCOPE] = UserSession(caller, "", "", "", "run")
        if path.startswith("/outputs/"):
            await (await self._file(request))(scope, receive, send)
            return
        try:
            await self._respond(request, receive, send)
        except ApplianceError as error:  # the body is refused
            await JSONResponse(error.body(), error.status)(scope, receive, send)

    async def _respond(self, request: Request, receive: Receive, send: Send) -> None:
        """Respond with a page, or with the response of a page's own path.

        Raises:
            ApplianceError: the body of the request is refused.
        """
        scope, path = request.scope, request.url.path
        name = next((each for each in self._pages if f"{path}/".startswith(f"/{each}/")), "")
        page = self._pages.get(name)
        if page is None:
            first = RedirectResponse(f"/{next(iter(self._pages))}", 303)
            missing = JSONResponse({"detail": "There is no such page."}, 404)
            await (first if path == "/" and request.method in _SAFE else missing)(scope, receive, send)
        elif path == f"/{name}" and request.method in _SAFE:
            root = f"/{name}" if name else ""
            response = await page.respond(request, root, self._navigation(name))
            await response(scope, receive, send)
        else:
            inner = {**scope, "root_path": f"/{name}", "path": path} if name else scope
            await self._bodies.forward(page.app, request, inner, send)

    def _navigation(self, current: str) -> Markup:
        if not current:
            return Markup()
        models = [(name, f"/{name}") for name in self._pages]
        return markup.render("demo_navigation.html", models=models, current=f"/{current}")

    async def close(self) -> None:
        for page in self._pages.values():
            await page.close()

    async def _file(self, request: Request) -> Response:
        if request.method not in _SAFE:
            return RedirectResponse("/", 303)
        headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        file = await self._api.file(request.url.path, {**headers, "accept-encoding": "identity"})
        headers = {name: file.headers[name] for name in _RESPONSE_HEADERS if name in file.headers}
        done = BackgroundTask(file.aclose)
        return StreamingResponse(file.aiter_raw(), file.status_code, headers, background=done)


def build(data: ModelPageData, example: PredictionResponse | None) -> gr.Blocks:
    """Return the page of a model: its name, description, form and example.

    Raises:
        ApplianceError: the model has no version.
    """
    if data.document is None:
        how = "create one with a training or `appliance push`"
        raise ApplianceError(f"{data.name} has no version yet: {how}")
    owner, _, name = data.name.partition("/")
    with gradio_page.page(data.name) as blocks:
        heading = {"owner": owner, "name": name, "description": data.description}
        gr.HTML(markup.render("demo_heading.html", **heading), apply_default_css=False)
        filled = _playground(data.name, data.document)
        if example is not None:
            values = filled.values_of(example.input)
            gr.HTML(_example(example, output.kind_of(data.document)), apply_default_css=False)
            with gr.Row(elem_classes=["actions"]):
                use = gr.Button("Use this example", elem_id="use-example")
            use.click(lambda: values, None, filled.components, **gradio_page.QUIET)
    return blocks


def _playground(name: str, document: dict[str, Any]) -> ModelForm:
    """Add the form and the result of the model ``name`` to the open blocks, side by side."""
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            filled = ModelForm(document)
            with gr.Row(elem_classes=["go"]):
                go = gr.Button("Run", variant="primary", elem_id="run")
                stop = gr.Button("Cancel", interactive=False, elem_id="cancel")
        with gr.Column(scale=1, min_width=320, elem_classes=["result"]):
            result = Result(output.kind_of(document))
    running = gr.State()

    @gradio_page.show_errors
    async def started(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        unchanged = [gr.skip() for _ in result.components]
        idle = [None, gr.skip(), gr.Button(interactive=False), *unchanged]
        yield [None, gr.Button(interactive=False), gr.Button(interactive=False), *unchanged]
        try:
            async for id, shown in form.run(filled, result, name, values, request):
                yield [id, gr.skip(), gr.Button(interactive=id is not None), *shown]
        except ApplianceError as error:
            yield [*idle[:3], form.error_status(error), *unchanged[1:]]
        else:
            yield idle

    outputs = [running, go, stop, *result.components]
    run = go.click(started, filled.components, outputs, trigger_mode="once", **gradio_page.QUIET)
    # Until the event is over, Gradio ignores a click, so the button is enabled after that.
    run.then(lambda: gr.Button(interactive=True), None, go, **gradio_page.QUIET)
    stop.click(form.cancel, running, None, **gradio_page.QUIET)
    return filled


def _example(example: PredictionResponse, kind: RenderedOutput) -> Markup:
    made: Any = example.output
    text = output.text_of(made) if kind is RenderedOutput.TEXT else ""
    if kind is RenderedOutput.DATA:
        text = json.dumps(made, indent=2, ensure_ascii=False)
    return markup.render(
        "demo_example.html",
        input=json.dumps(example.input, indent=2, ensure_ascii=False),
        text=text,
        files=output.files(made),
    )


async def serve(arguments: argparse.Namespace, secret: str) -> None:
    """Serve the demo until the process gets a signal to end.

    Raises:
        ApplianceError: a model does not exist or has no version.
    """
    api = Api(arguments.api, arguments.certificates, arguments.client_certificate)
    limits = DemoLimits(arguments.runs_per_hour, arguments.max_upload, arguments.max_input)
    demo = await Demo.create(api, secret, arguments.models, limits)
    server = uvicorn.Server(
        uvicorn.Config(
            demo,
            host=arguments.host,
            port=arguments.port,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
    url = local_url(arguments.host, arguments.port, tls=False)
    print(f"the demo of {', '.join(arguments.models)} runs at {url} until Ctrl-C", flush=True)
    await server.serve()
    await demo.close()
    await api.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m appliance.ui.demo")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--api", required=True)
    parser.add_argument("--certificates", type=Path)
    parser.add_argument("--client-certificate", type=Path, help="file with a certificate and its key")
    parser.add_argument("--temporary", type=Path, help="folder for temporary files, removed at exit")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--runs-per-hour", type=int, help="of one visitor")
    parser.add_argument("--max-upload", type=int, default=DemoLimits().max_upload, help="in bytes")
    parser.add_argument("--max-input", type=int, default=DemoLimits().max_input, help="in bytes")
    arguments = parser.parse_args()
    logs.configure(level="warning")
    secret = next((os.environ[name] for name in TOKEN if os.environ.get(name)), "")
    try:
        asyncio.run(serve(arguments, secret))
    except ApplianceError as error:
        print(f"appliance: {error.detail}", file=sys.stderr)
        return 1
    finally:
        if arguments.temporary is not None:
            shutil.rmtree(arguments.temporary, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
