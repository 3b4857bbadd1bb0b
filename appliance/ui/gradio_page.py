"""Helpers for the pages of demos, which are built with Gradio. Each page is built once for all visitors:

    with gradio_page.page("owner/name") as blocks:  # not gr.Blocks() itself
        text = gr.HTML(apply_default_css=False)
        blocks.load(show, None, text, **gradio_page.QUIET)

    @gradio_page.show_errors  # show errors of the API in a message on the page
    async def show(request: gr.Request) -> str:
        caller = gradio_page.session_of(request).caller  # calls the API with the demo's token
        return render(await caller.get("/v1/models/owner/name"))

Make HTML for ``gr.HTML`` with ``markup``, which escapes all text. The content security policy forbids
``js=``, ``head=`` and resources of other servers; scripts are files in ``static``, and ``gradio_fetch.js``.
The navigation bar is no Gradio component: ``add_navigation`` inserts it into the HTML, so it is visible
before any script has run.
"""

from __future__ import annotations

import functools
import inspect
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import gradio as gr
from markupsafe import Markup, escape

from appliance.domain.errors import ApplianceError, InvalidInput
from appliance.ui import layout, session, static_files
from appliance.ui.session import UserSession

#: Options of events that refresh a page: no spinner, no limit on concurrency, no name in Gradio's API.
QUIET: Final[dict[str, Any]] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}
_Function = TypeVar("_Function", bound=Callable[..., Any])
_HEAD: Final = re.compile(
    r"\s*<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*?/>|\s*<link rel=\"manifest\"[^>]*>"
)
_SCRIPT: Final = (Path(__file__).parent / "gradio_fetch.js").read_text()


@contextmanager
def page(title: str) -> Iterator[gr.Blocks]:
    """Open the ``gr.Blocks`` of a page; the caller adds components inside the ``with`` block."""
    with gr.Blocks(
        title=title,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(3600, 86400),  # seconds: interval of removals, and age of the removed uploads
    ) as blocks:
        yield blocks


def show_errors(function: _Function) -> _Function:
    """Decorate an event handler (coroutine or async generator) to show ``ApplianceError`` on the page."""
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def generated(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            try:
                async for value in function(*args, **kwargs):
                    yield value
            except ApplianceError as error:
                raise message(error) from error

        return cast("_Function", generated)

    @functools.wraps(function)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except ApplianceError as error:
            raise message(error) from error

    return cast("_Function", awaited)


def message(error: ApplianceError) -> gr.Error:
    if isinstance(error, InvalidInput):
        problems = [
            f"{one.field.removeprefix('input.')}: {one.description}" if one.field else one.description
            for one in error.problems
        ]
        return gr.Error(str(Markup("<br>").join(problems)), title="Invalid input", print_exception=False)
    return gr.Error(str(escape(error.detail)), title=error.title or "Not possible", print_exception=False)


def session_of(request: gr.Request) -> UserSession:
    """Return the session of an event of a Gradio page."""
    if request.request is None:
        raise ApplianceError("This request has no session: sign in again.")
    return session.current(request.request)


def add_navigation(document: str, navigation: str) -> tuple[str, str]:
    """Return the HTML of a Gradio page with ``navigation`` inserted, and the nonce that its scripts have."""
    nonce = secrets.token_urlsafe(16)
    document = _HEAD.sub("", document)
    # The files of Gradio's frontend are the same for every page.
    document = document.replace('"./assets/', '"/assets/').replace('<base href="./"', '<base href="/"')
    script = f'<script type="module" src="{static_files.PATH}/outputs.js"></script>'
    style = f'<link rel="icon" href="{layout.ICON}"><style>{layout.CSS}</style>'
    document = document.replace("</head>", f"{style}<script>{_SCRIPT}</script>{script}</head>", 1)
    document = re.sub(r"(<body[^>]*>)", lambda body: f"{body[1]}{navigation}", document, count=1)
    return document.replace("<script", f'<script nonce="{nonce}"'), nonce


def headers(nonce: str) -> dict[str, str]:
    """Return the HTTP headers of a page that may be shown in a frame of any site.

    Gradio compiles templates and plots with ``eval`` and sets styles inline, so both are allowed. Scripts
    need ``nonce``.
    """
    rules = {
        "default-src": "'self'",
        "script-src": f"'self' 'nonce-{nonce}' 'unsafe-eval'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "media-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "worker-src": "'self' blob:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "*",
    }
    return layout.security_headers(rules)
