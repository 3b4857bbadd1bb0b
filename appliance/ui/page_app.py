"""A page's blocks as an ASGI application, and the files of Gradio's frontend that all pages load."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import gradio as gr
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.ui import layout
from appliance.ui.theme import theme

_FOLDER: Final = Path(gr.__file__).parent / "templates" / "frontend"


class Frontend:
    """The static files of Gradio's pages, which are public and the same for everyone."""

    def __init__(self) -> None:
        """Nothing is read before it is asked for."""
        self._files: ASGIApp = GZipMiddleware(StaticFiles(directory=_FOLDER), compresslevel=4)

    def takes(self, path: str) -> bool:
        """Whether ``path`` is one of these files."""
        return path.startswith(("/assets/", "/static/"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        await self._files(scope, receive, _kept(send) if scope["path"].startswith("/assets/") else send)


class PageApp:
    """A page's blocks as an ASGI application."""

    def __init__(self, blocks: gr.Blocks, max_file_size: int, shows: object = None) -> None:
        """``max_file_size`` is in bytes; ``shows`` is the data that the blocks were built from."""
        self.app = FastAPI(openapi_url=None)
        self.shows = shows
        self.opened_by: set[str] = set()  # accounts that have opened the page
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
        """Start the queue of the page's events, and return this page."""
        await self._running.enter_async_context(self.app.router.lifespan_context(self.app))
        return self

    async def opened(
        self, request: Request, root: str, frame: str, images: str, *, framed: bool = False
    ) -> Response:
        """The HTML of the page, in ``frame``."""
        sent: list[Message] = []

        async def keep(message: Message) -> None:
            sent.append(message)

        headers = [pair for pair in request.scope["headers"] if pair[0] != b"accept-encoding"]
        asked = {**request.scope, "method": "GET", "headers": headers, "root_path": root, "path": f"{root}/"}
        asked["raw_path"] = asked["path"].encode()
        await self.app(asked, request.receive, keep)
        status = next(message["status"] for message in sent if message["type"] == "http.response.start")
        body = b"".join(message.get("body", b"") for message in sent)
        document, nonce = layout.dress(body.decode(), frame)
        return HTMLResponse(document, status, layout.security_headers(nonce, images=images, framed=framed))

    async def close(self) -> None:
        """Stop it."""
        await self._running.aclose()


def _kept(send: Send) -> Send:
    """Browsers keep the answer: a file with a digest in its name never changes."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            MutableHeaders(scope=message)["cache-control"] = "public, max-age=31536000, immutable"
        await send(message)

    return told
