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
``head=`` and anything from other servers. The navigation is not made by Gradio: ``dress`` puts it into the
HTML of a page, so it is visible before a script has run.
"""

from __future__ import annotations

import functools
import inspect
import re
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar, cast

import gradio as gr
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from appliance.domain.errors import ApplianceError, InvalidInput, Unauthenticated
from appliance.ui import markup
from appliance.ui.session import Session
from appliance.ui.theme import CSS, SCRIPT

#: For events that refresh what is shown: no spinner, no waiting for one another, no name in Gradio's API.
QUIET: Final[dict[str, Any]] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}
#: What was shown last, in a ``gr.State``; see ``changed``.
Marks = list[int]
#: Where in an ASGI scope the parameters of a page's path are.
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
    """A line in the table of pages."""

    path: str  # "/machine", or with a parameter at its end: "/p/{id}"
    title: str
    build: Callable[[], gr.Blocks]
    listed: bool = True  # in the navigation
    admin: bool = False  # there only for tokens with the admin scope


@contextmanager
def page(title: str) -> Iterator[gr.Blocks]:
    """The blocks of a page, to be filled."""
    with gr.Blocks(
        title=title,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(3600, 86400),  # seconds: how often, and how old a file is that was uploaded and goes
    ) as blocks:
        yield blocks


def parameters(request: gr.Request) -> dict[str, str]:
    """The parameters in the path of the page that an event comes from."""
    return {} if request.request is None else dict(request.request.scope.get(PARAMETERS, {}))


def changed(made: Sequence[str], marks: Marks) -> list[Any]:
    """The marks of some pieces of HTML, and those of them that differ from the ones that ``marks`` are of.

    For events that look again and again: what is sent replaces what is shown, with what is selected in it.
    """
    now = [zlib.crc32(piece.encode(errors="replace")) for piece in made]
    same = [position < len(marks) and marks[position] == mark for position, mark in enumerate(now)]
    return [now, *(gr.skip() if as_before else piece for piece, as_before in zip(made, same, strict=True))]


def show_errors(function: _Function) -> _Function:
    """Have errors of the tree shown to whoever caused them; for coroutine and async generator functions."""
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
    """An error as what pops up on a page. The texts of some quote what people wrote."""
    if isinstance(error, Unauthenticated):
        text = 'This token is no longer valid: <a href="/signin">sign in</a> with another one.'
        return gr.Error(text, title="Signed out", print_exception=False)
    if isinstance(error, InvalidInput):
        problems = [
            f"{one.field.removeprefix('input.')}: {one.description}" if one.field else one.description
            for one in error.problems
        ]
        return gr.Error(
            str(Markup("<br>").join(problems)), title="Some of the input is wrong", print_exception=False
        )
    return gr.Error(str(escape(error.detail)), title=error.title or "Not possible", print_exception=False)


# -- the frame -----------------------------------------------------------------------------------------------


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


def dress(document: str, frame: str) -> tuple[str, str]:
    """A page's HTML with ``frame`` on top, its scripts marked as ours; and the mark, for the policy."""
    nonce = secrets.token_urlsafe(16)
    document = _HEAD.sub("", document)
    # The files of Gradio's frontend are the same for every page.
    document = document.replace('"./assets/', '"/assets/').replace('<base href="./"', '<base href="/"')
    top = f'<link rel="icon" href="{_ICON}"><style>{CSS}</style><script>{SCRIPT}</script></head>'
    document = document.replace("</head>", top, 1)
    document = re.sub(r"(<body[^>]*>)", lambda body: body[1] + frame, document, count=1)
    return document.replace("<script", f'<script nonce="{nonce}"'), nonce


def security_headers(nonce: str, *, images: str = "", framed: bool = False) -> dict[str, str]:
    """The headers of a page: what it may load, and who may show it in a frame.

    Gradio compiles templates and plots with ``eval``, and sets styles inline; scripts that get into a page
    with what it shows are not run. ``images`` are further origins of pictures.
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
        "frame-ancestors": "*" if framed else "'none'",
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
