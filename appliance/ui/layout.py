"""What all pages share, and what the pages that Gradio builds need: those of models, and demos.

``template_pages`` tells how to add any other page. The blocks of a model's page are built once for all users:

    with layout.page("owner/name") as blocks:  # not gr.Blocks() itself
        heading = gr.HTML(apply_default_css=False)
        blocks.load(show, None, heading, **layout.QUIET)

    @layout.show_errors  # show errors of the API in a message on the page
    async def show(request: gr.Request) -> str:
        caller = session.of(request).caller  # calls the API with the user's token
        return render(await caller.get("/admin/status"))

So the blocks must not contain data of a user. Event handlers load this data with the user's ``caller`` when
the page is opened (``blocks.load``) and at each event.

Make HTML for ``gr.HTML`` with ``markup``, which escapes all text. The content security policy forbids
``js=``, ``head=`` and resources of other servers; scripts are files in ``static``, and ``page.js``. The
navigation bar is no Gradio component: ``add_navigation`` inserts it into the HTML, so it is visible before
any script has run.
"""

from __future__ import annotations

import functools
import inspect
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar, cast
from urllib.parse import quote

import gradio as gr
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse

from appliance.domain.errors import ApplianceError, InvalidInput, Unauthenticated
from appliance.ui import languages, markup, static_files
from appliance.ui.languages import gettext as _
from appliance.ui.session import Session
from appliance.ui.session import current as current_session
from appliance.ui.session import prefix as path_prefix
from appliance.ui.theme import CSS, SCRIPT

#: Options of events that refresh a page: no spinner, no limit on concurrency, no name in Gradio's API.
QUIET: Final[dict[str, Any]] = {
    "show_progress": "hidden",
    "concurrency_limit": None,
    "api_visibility": "private",
}
#: Cookie with the colour scheme that frame.js sets.
THEME_COOKIE: Final = "appliance_theme"

_Function = TypeVar("_Function", bound=Callable[..., Any])
_HEAD: Final = re.compile(
    r"\s*<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*?/>|\s*<link rel=\"manifest\"[^>]*>"
)
#: The icon of all pages.
ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='4' fill='%230f766e'/%3E"
    "%3Cpath d='M4 11.5 8 4l4 7.5' stroke='white' stroke-width='1.8' stroke-linecap='round' "
    "stroke-linejoin='round' fill='none'/%3E%3Ccircle cx='8' cy='9.6' r='1.1' fill='%235eead4'/%3E%3C/svg%3E"
)


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
    if isinstance(error, Unauthenticated):
        text = _('This token is no longer valid: <a href="./signin">sign in</a> with another one.')
        return gr.Error(text, title=_("Signed out"), print_exception=False)
    if isinstance(error, InvalidInput):
        problems = [
            f"{one.field.removeprefix('input.')}: {one.description}" if one.field else one.description
            for one in error.problems
        ]
        return gr.Error(str(Markup("<br>").join(problems)), title=_("Invalid input"), print_exception=False)
    return gr.Error(str(escape(error.detail)), title=error.title or _("Not possible"), print_exception=False)


class Listed(Protocol):
    """A page that the navigation can link."""

    @property
    def path(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def listed(self) -> bool: ...
    @property
    def admin(self) -> bool: ...


def navigation(
    pages: Sequence[Listed], request: Request, current: str, title: str, *, manual: bool = False
) -> Markup:
    """Return the navigation bar at the top of a page.

    ``current`` is the path of the page; ``manual`` adds a link to the manual.
    """
    user = current_session(request)
    return markup.render(
        "navigation.html",
        pages=listed(pages, user),
        session=user,
        current=current,
        title=title,
        manual=manual,
        here=here(request),
        theme=chosen_theme(request),
        languages=languages.available(),
        language=languages.current(),
        direction=languages.direction(),
        limits={
            "admin": "",
            "run": " · " + _("cannot change the appliance"),
            "read": " · " + _("can only look"),
        },
    )


def listed(pages: Sequence[Listed], user: Session) -> list[Listed]:
    """Return the pages that the navigation links for ``user``."""
    return [page for page in pages if page.listed and (user.admin or not page.admin)]


def here(request: Request) -> str:
    """Return the path and query of the page, relative to its ``<base>``: a link "#part" needs them."""
    query = request.url.query
    return "." + quote(request.scope["path"]) + (f"?{query}" if query else "")


def add_navigation(document: str, navigation: str, prefix: str = "", theme: str = "") -> tuple[str, str]:
    """Return the HTML of a Gradio page with ``navigation`` inserted, and the nonce that its scripts have.

    ``prefix`` is the path under which a reverse proxy serves the UI. Links are relative to it. ``theme`` is
    the colour scheme that the user has chosen. frame.js keeps Gradio's own class for it, "dark", in step.
    """
    nonce = secrets.token_urlsafe(16)
    document = _HEAD.sub("", document)
    # The files of Gradio's frontend are the same for every page.
    base = escape(prefix)
    document = document.replace('"./assets/', f'"{base}/assets/')
    document = document.replace('<base href="./"', f'<base href="{base}/"')
    names = ["outputs.js"]
    if 'class="frame"' in navigation:  # not on demos
        names += ["frame.js", "model_page.js"]
    frame = "".join(
        f'<script type="module" src="{base}{static_files.PATH}/{name}"></script>' for name in names
    )
    top = f'<link rel="icon" href="{ICON}"><style>{CSS}</style><script>{SCRIPT}</script>{frame}</head>'
    document = document.replace("</head>", top, 1)
    if theme:
        document = document.replace("<html", f'<html data-theme="{theme}"', 1)
    document = re.sub(r"(<body[^>]*>)", lambda body: f"{body[1]}{navigation}", document, count=1)
    return document.replace("<script", f'<script nonce="{nonce}"'), nonce


def chosen_theme(request: Request) -> str:
    """Return the colour scheme that the user has chosen in a page: light, dark, or empty for the system's."""
    found = request.cookies.get(THEME_COOKIE, "")
    return found if found in {"light", "dark"} else ""


def security_headers(nonce: str, *, images: str = "", embeddable: bool = False) -> dict[str, str]:
    """Return the HTTP headers of a page, including its content security policy.

    Gradio compiles templates and plots with ``eval`` and sets styles inline, so both are allowed. Scripts
    need ``nonce``. ``images`` lists further origins that images may be loaded from. An ``embeddable`` page
    may be shown in a frame of any site.
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


def page_without_gradio(template: str, status: int, request: Request, **values: Any) -> HTMLResponse:
    """Render a template that extends ``alone.html``; ``values`` must contain ``title``."""
    headers = security_headers("none") | {
        "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        "form-action 'self'; base-uri 'self'; frame-ancestors 'none'"
    }
    css = Markup(CSS)  # noqa: S704 - our own file
    base, theme = f"{path_prefix(request)}/", chosen_theme(request)
    content = markup.render(
        template,
        base=base,
        theme=theme,
        language=languages.current(),
        direction=languages.direction(),
        icon=ICON,
        css=css,
        **values,
    )
    return HTMLResponse(content, status, headers)
