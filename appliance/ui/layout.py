"""The parts that all pages share, and how to add a page.

A page is a module in ``pages`` with a function that builds its ``gradio.Blocks``, and a line in
``pages.PAGES``:

    def build() -> gr.Blocks:
        with layout.page("Machine") as blocks:  # never a bare gr.Blocks
            bars = gr.HTML(apply_default_css=False)
            blocks.load(show, None, bars, **layout.QUIET)
        return blocks

    @layout.show_errors  # errors of the API pop up on the page
    async def show(request: gr.Request) -> str:
        caller = session.of(request).caller  # calls the API with the user's token
        return render(await caller.get("/admin/status"))

The blocks are built once and shared by all users, so they contain no user's data: functions get that with the
user's ``caller`` when the page is opened (``blocks.load``) and at each event. Show the controls of
administrators if ``session.of(request).admin``; the API refuses their requests to others in any case.
``Page.admin`` hides a whole page from others. A page at ``/p/{id}`` finds ``id`` in
``layout.parameters(request)``; the query is in ``request.query_params``.

HTML for ``gr.HTML`` comes from ``markup``, which escapes text from people and models. Styles are in
``style.css``, and the only script of our own is ``page.js``: the content security policy forbids ``js=``,
``head=`` and anything from other servers. The navigation is not made by Gradio: ``add_navigation`` puts it
into the HTML of a page, so it is visible before a script has run.
"""

from __future__ import annotations

import functools
import inspect
import re
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Final, NamedTuple, TypeVar, cast

import gradio as gr
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from appliance.domain.errors import ApplianceError, InvalidInput, Unauthenticated
from appliance.ui import markup
from appliance.ui.session import Session
from appliance.ui.theme import CSS, SCRIPT

#: Options of events that refresh a page: no spinner, no limit on concurrency, no name in Gradio's API.
QUIET: Final[dict[str, Any]] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}
#: Checksums of the pieces of HTML that a page shows, in a ``gr.State`` (see ``skip_unchanged``).
Checksums = list[int]
#: Key in an ASGI scope of the parameters in a page's path.
PARAMETERS: Final = "appliance.parameters"

_Function = TypeVar("_Function", bound=Callable[..., Any])
_HEAD: Final = re.compile(
    r"\s*<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*?/>|\s*<link rel=\"manifest\"[^>]*>"
)
_ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='4' fill='%230f766e'/%3E"
    "%3Cpath d='M4 11.5 8 4l4 7.5' stroke='white' stroke-width='1.8' fill='none'/%3E%3C/svg%3E"
)


class Page(NamedTuple):
    """An entry in the table of pages."""

    path: str  # "/machine", or with a parameter at its end: "/p/{id}"
    title: str
    build: Callable[[], gr.Blocks]
    listed: bool = True  # whether the navigation links it
    admin: bool = False  # whether only tokens with the scope admin may open it


@contextmanager
def page(title: str) -> Iterator[gr.Blocks]:
    """Open the blocks of a page, to which the caller adds components."""
    with gr.Blocks(
        title=title,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(3600, 86400),  # seconds: interval of removals, and age of the removed uploads
    ) as blocks:
        yield blocks


def parameters(request: gr.Request) -> dict[str, str]:
    """Return the parameters in the path of the page that sent the event."""
    return {} if request.request is None else dict(request.request.scope.get(PARAMETERS, {}))


def skip_unchanged(pieces: Sequence[str], checksums: Checksums) -> list[Any]:
    """Return the checksums of ``pieces``, then each piece, or ``gr.skip()`` if its checksum has not changed.

    An update of a piece replaces its HTML, and would undo a selection of text in it.
    """
    now = [zlib.crc32(piece.encode(errors="replace")) for piece in pieces]
    before = zip_longest(pieces, now, checksums[: len(now)])
    return [now, *(gr.skip() if checksum == old else piece for piece, checksum, old in before)]


def show_errors(function: _Function) -> _Function:
    """Show errors of a coroutine or async generator function on the page of the user who caused them."""
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
    """Return an error as a message that pops up on a page, with its text escaped."""
    if isinstance(error, Unauthenticated):
        text = 'This token is no longer valid: <a href="/signin">sign in</a> with another one.'
        return gr.Error(text, title="Signed out", print_exception=False)
    if isinstance(error, InvalidInput):
        problems = [
            f"{one.field.removeprefix('input.')}: {one.description}" if one.field else one.description
            for one in error.problems
        ]
        return gr.Error(str(Markup("<br>").join(problems)), title="Invalid input", print_exception=False)
    return gr.Error(str(escape(error.detail)), title=error.title or "Not possible", print_exception=False)


def navigation(
    pages: Sequence[Page], session: Session, current: str, title: str, *, manual: bool = False
) -> Markup:
    """Return the bar on top of every page.

    ``current`` is the path of the page that is shown; ``manual`` adds a link to the manual.
    """
    listed = [page for page in pages if page.listed and (session.admin or not page.admin)]
    return markup.render(
        "navigation.html",
        pages=listed,
        session=session,
        current=current,
        title=title,
        manual=manual,
        limits={"admin": "", "run": " · cannot change the appliance", "read": " · can only look"},
    )


def add_navigation(document: str, navigation: str) -> tuple[str, str]:
    """Return a page of Gradio with ``navigation`` on top, and the nonce that all its scripts now have."""
    nonce = secrets.token_urlsafe(16)
    document = _HEAD.sub("", document)
    # The files of Gradio's frontend are the same for every page.
    document = document.replace('"./assets/', '"/assets/').replace('<base href="./"', '<base href="/"')
    top = f'<link rel="icon" href="{_ICON}"><style>{CSS}</style><script>{SCRIPT}</script></head>'
    document = document.replace("</head>", top, 1)
    document = re.sub(r"(<body[^>]*>)", lambda body: body[1] + navigation, document, count=1)
    return document.replace("<script", f'<script nonce="{nonce}"'), nonce


def security_headers(nonce: str, *, images: str = "", embeddable: bool = False) -> dict[str, str]:
    """Return the headers of a page, with a policy for the resources that it may load.

    Gradio compiles templates and plots with ``eval``, and sets styles inline. Scripts without the nonce do
    not run. ``images`` are origins of images in addition to this appliance. An ``embeddable`` page may be in
    a frame of any site.
    """
    rules = {
        "default-src": "'self'",
        "script-src": f"'self' 'nonce-{nonce}' 'unsafe-eval'",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": f"'self' data: blob: {images}".strip(),
        "media-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "worker-src": "'self' blob:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "*" if embeddable else "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in rules.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "cache-control": "no-store",
    }


def page_without_gradio(template: str, status: int, **values: Any) -> HTMLResponse:
    """Render a template that extends ``alone.html``, and needs ``title``; its page runs no scripts."""
    headers = security_headers("none") | {
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    }
    content = markup.render(template, icon=_ICON, css=Markup(CSS), **values)  # noqa: S704 - our own file
    return HTMLResponse(content, status, headers)
