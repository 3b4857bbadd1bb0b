"""The UI over an engine without Ray, in one process, and an HTTP client that behaves like a browser."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
import httpx

from appliance.config import Config
from appliance.ui import gradio_page
from appliance.ui.client import Api
from appliance.ui.page_app import PageApp
from appliance.ui.server import UiServer
from appliance.ui.session import Sessions
from tests.support.api_client import Api as Routes

HTML = {"Accept": "text/html"}
BASE = "http://models.example.org:8000"


def _build() -> gr.Blocks:
    with gradio_page.page("Built") as blocks:
        gr.File(label="A file")
    return blocks


@functools.cache
def built_page() -> PageApp:
    """Build a small page with Gradio, once for all tests, because it takes a second.

    It keeps nothing of the people who open it. Its queue is not started: no event of the page is answered.
    """
    return PageApp(_build(), max_file_size=10**6)


class Pages:
    """One UI server."""

    def __init__(self, routes: Routes, folder: Path, manual: Path = Path("/nonexistent")) -> None:
        self.api = Api(BASE)
        self.api._http = httpx.AsyncClient(transport=routes._transport, base_url=BASE)
        self.sessions = Sessions(self.api, folder / "ui.key")
        config = Config.model_validate(CONFIG)
        self.server = UiServer(config, self.api, self.sessions, manual=manual)

    def browser(self, scheme: str = "http") -> httpx.AsyncClient:
        """Return a client that keeps cookies and sends the headers that the gateway adds."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.server),
            base_url=BASE.replace("http:", f"{scheme}:"),
            headers={**HTML, "X-Forwarded-Proto": scheme},
        )

    @asynccontextmanager
    async def signed_in(self, secret: str) -> AsyncIterator[httpx.AsyncClient]:
        """A client with a session, signed in with the token ``secret``."""
        async with self.browser() as browser:
            reply = await browser.post("/signin", data={"token": secret})
            assert reply.status_code == 303, reply.text
            yield browser


CONFIG = {
    "ui": {"title": "Our <models>"},
    "models": [
        {"name": "test/echo", "kind": "echo", "cover_image_url": "https://pictures.example.org/echo.png"}
    ],
}
