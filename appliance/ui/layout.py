"""The layout that all pages share, and how a page is added.

A page is a module in ``pages`` with a function that builds its ``gradio.Blocks``, and a line in
``pages.PAGES``:

    def build() -> gr.Blocks:
        with shell.page("Machine") as blocks:  # never a bare gr.Blocks
            bars = gr.HTML(apply_default_css=False)
            blocks.load(show, None, bars, **shell.QUIET)
        return blocks

    @shell.told  # errors of the API become messages
    async def show(request: gr.Request) -> str:
        caller = session.of(request).caller  # calls the API with the token of whoever looks
        return render(await caller.get("/admin/status"))

The blocks are built once and shared by everyone: they hold nothing of a person, and what a person may see is
asked for with that person's ``caller``, when the page is opened (``blocks.load``) and whenever something
happens. What only an administrator may do is there when ``session.of(request).admin`` holds; the API refuses
it to others in any case. A page at ``/p/{id}`` finds ``id`` in ``shell.parameters(request)``, the query is in
``request.query_params``. ``Page.admin`` keeps others out of a whole page.

Text that people or models wrote goes through ``html.escape`` before it gets into ``gr.HTML``. Style is in
``style.css``. No ``js=``, no ``head=``, nothing from other servers: the content security policy forbids it;
``page.js`` is the one script of ours.
The navigation is not Gradio's: ``dress`` puts it into the HTML of a page, so it is there before any script
has run.
"""

from __future__ import annotations

import functools
import html
import inspect
import re
import secrets
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar, cast

import gradio as gr

from appliance.domain.errors import ApplianceError, InvalidInput, Unauthenticated
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


def told(function: _Function) -> _Function:
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
        text = 'Your token is not valid any more: <a href="/signin">sign in</a> with another one.'
        return gr.Error(text, title="Signed out", print_exception=False)
    if isinstance(error, InvalidInput):
        problems = [
            f"{one.field.removeprefix('input.')}: {one.description}" if one.field else one.description
            for one in error.problems
        ]
        text = "<br>".join(html.escape(problem) for problem in problems)
        return gr.Error(text, title="Some of the input is wrong", print_exception=False)
    return gr.Error(html.escape(error.detail), title=error.title or "Not possible", print_exception=False)


# -- the frame -----------------------------------------------------------------------------------------------


def navigation(
    pages: Sequence[Page], session: Session, here: str, title: str, *, manual: bool = False
) -> str:
    """The bar on top of every page. ``here`` is the path of the page; ``manual`` adds a link to it."""
    shown = [page for page in pages if page.listed and (session.admin or not page.admin)]
    current = {here: ' aria-current="page"'}
    links = "".join(
        f'<a href="{page.path}"{current.get(page.path, "")}>{html.escape(page.title)}</a>' for page in shown
    )
    if manual:
        links += '<a href="/manual/">Manual</a>'
    can = {"admin": "", "run": " · cannot change the appliance", "read": " · can only look"}[session.scope]
    return (
        f'<header class="frame"><div><a class="brand" href="/">{html.escape(title)}</a>'
        f'<nav aria-label="Pages">{links}<a href="/docs">API</a></nav>'
        f'<form method="post" action="/signout"><span title="token {html.escape(session.token)}">'
        f"{html.escape(session.name)}{can}</span><button>Sign out</button></form></div></header>"
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


def policy(nonce: str, *, images: str = "", framed: bool = False) -> dict[str, str]:
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


def alone(title: str, content: str) -> str:
    """The HTML of a page without Gradio; ``content`` is HTML."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="{_ICON}"><style>{CSS}</style></head>'
        f'<body><main class="alone">{content}</main></body></html>'
    )
