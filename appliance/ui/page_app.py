"""ASGI applications for the blocks of a demo's page, and for the static files of Gradio's frontend."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.ui import gradio_page
from appliance.ui.responses import with_headers
from appliance.ui.theme import theme

_FOLDER: Final = Path(gr.__file__).parent / "templates" / "frontend"


class Frontend:
    """The static files of Gradio's frontend, which need no sign-in."""

    def __init__(self) -> None:
        self._files: ASGIApp = GZipMiddleware(StaticFiles(directory=_FOLDER), compresslevel=4)

    def has(self, path: str) -> bool:
        return path.startswith(("/assets/", "/static/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/assets/"):  # names of these files contain a digest
            send = with_headers(send, {"cache-control": "public, max-age=31536000, immutable"})
        await self._files(scope, receive, send)


class PageApp:
    """The ASGI application of a page."""

    def __init__(self, blocks: gr.Blocks, max_file_size: int) -> None:
        """``max_file_size`` is in bytes."""
        self.app = FastAPI(openapi_url=None)
        self._running = AsyncExitStack()
        blocks.api_open = False
        gr.mount_gradio_app(
            self.app,
            blocks,
            "/",
            theme=theme(),
            footer_links=[],
            max_file_size=max_file_size,
            run_history=False,
            ssr_mode=False,
            show_error=False,
            enable_monitoring=False,
            mcp_server=False,
        )

    async def start(self) -> PageApp:
        """Start the page's event queue, and return the page."""
        await self._running.enter_async_context(self.app.router.lifespan_context(self.app))
        return self

    async def respond(self, request: Request, root: str, navigation: str) -> Response:
        """Return the HTML of the page with ``navigation`` inserted; ``root`` is the path of the page."""
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        headers = [pair for pair in request.scope["headers"] if pair[0] != b"accept-encoding"]
        scope = {**request.scope, "method": "GET", "headers": headers, "root_path": root, "path": f"{root}/"}
        scope["raw_path"] = scope["path"].encode()
        await self.app(scope, request.receive, keep)
        status = next(message["status"] for message in sent if message["type"] == "http.response.start")
        body = b"".join(message.get("body", b"") for message in sent)
        document, nonce = gradio_page.add_navigation(body.decode(), navigation)
        return HTMLResponse(document, status, gradio_page.headers(nonce))

    async def close(self) -> None:
        await self._running.aclose()
