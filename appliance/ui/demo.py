"""``python -m appliance.ui.demo owner/name``: serve a page for one model on a port of its own.

Any web site may show the page in a frame. Everyone who can open the page may run this model, and nothing
else. The token never leaves this process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import uvicorn
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from appliance.domain.errors import ApplianceError
from appliance.domain.local_url import local_url
from appliance.observability import logs
from appliance.protocols.response_types import ModelResponse
from appliance.ui import layout, session
from appliance.ui.client import Api
from appliance.ui.page_app import Frontend, PageApp
from appliance.ui.pages import model
from appliance.ui.session import Session

#: Environment variables for the token; the first that is set is used.
TOKEN: Final = ("APPLIANCE_TOKEN", "REPLICATE_API_TOKEN")
_MAX_UPLOAD: Final = 10**8  # bytes; the appliance has a limit of its own
_SAFE: Final = frozenset({"GET", "HEAD"})
_REQUEST_HEADERS: Final = ("range", "if-range", "if-none-match")
_RESPONSE_HEADERS: Final = (
    *("content-type", "content-length", "content-range", "accept-ranges", "content-disposition", "etag"),
    *("content-security-policy", "x-content-type-options", "cache-control"),
)


class Demo:
    """The ASGI application of the demo."""

    def __init__(self, api: Api, secret: str, page: PageApp) -> None:
        self._api = api
        self._caller = api.caller(secret, api.url)
        self._page = page
        self._frontend = Frontend()

    @classmethod
    async def create(cls, api: Api, secret: str, name: str) -> Demo:
        """Create the page of model ``name``. All visitors run the model with the token ``secret``.

        Raises:
            ApplianceError: the model does not exist or has no version.
        """
        described = await api.caller(secret, api.url).get_as(ModelResponse, f"/v1/models/{name}")
        data = model.ModelPageData.of(described)
        if data.document is None:
            raise ApplianceError(f"{name} has no version yet: create one with a training or `appliance push`")
        with layout.page(data.name) as blocks:
            model.playground(blocks, data.name, data.document, bare=True)
        return cls(api, secret, await PageApp(blocks, _MAX_UPLOAD).start())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path = request.url.path
        if self._frontend.has(path):
            await self._frontend(scope, receive, send)
            return
        origin = session.origin(request)
        if request.method not in _SAFE and request.headers.get("origin") not in {None, origin}:
            refusal = JSONResponse({"detail": "Requests from other sites are refused."}, 403)
            await refusal(scope, receive, send)
            return
        scope[session.SCOPE] = Session(self._caller, "", "", "", "run")
        if path.startswith("/outputs/"):
            await (await self._file(request))(scope, receive, send)
        elif path == "/" and request.method in _SAFE:
            await (await self._page.respond(request, "", "", "", embeddable=True))(scope, receive, send)
        else:
            await self._page.app(scope, receive, send)

    async def close(self) -> None:
        await self._page.close()

    async def _file(self, request: Request) -> Response:
        if request.method not in _SAFE:
            return RedirectResponse("/", 303)
        headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        file = await self._api.file(request.url.path, {**headers, "accept-encoding": "identity"})
        headers = {name: file.headers[name] for name in _RESPONSE_HEADERS if name in file.headers}
        done = BackgroundTask(file.aclose)
        return StreamingResponse(file.aiter_raw(), file.status_code, headers, background=done)


async def serve(arguments: argparse.Namespace, secret: str) -> None:
    """Serve the demo until the process gets a signal to end.

    Raises:
        ApplianceError: the model does not exist or has no version.
    """
    api = Api(arguments.api, arguments.certificates)
    demo = await Demo.create(api, secret, arguments.model)
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
    print(
        f"the demo of {arguments.model} runs at {local_url(arguments.host, arguments.port, tls=False)} "
        "until Ctrl-C",
        flush=True,
    )
    await server.serve()
    await demo.close()
    await api.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m appliance.ui.demo")
    parser.add_argument("model")
    parser.add_argument("--api", required=True)
    parser.add_argument("--certificates", type=Path)
    parser.add_argument("--temporary", type=Path, help="folder for temporary files, removed at exit")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860)
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
