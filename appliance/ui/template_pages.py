"""Pages that are rendered from a Jinja2 template, without Gradio, and how to add one.

A page is a module in ``pages`` with handlers and a list of routes, and an item in ``pages.PAGES``:

    async def show(request: Request) -> Response:
        caller = session.current(request).caller  # calls the API with the user's token
        status = await caller.get_as(ApplianceStatusResponse, "/admin/status")
        return template_pages.respond(request, "machine.html", title="Machine", status=status)

    async def bars(request: Request) -> Response:  # a part of the page, which htmx asks for
        return template_pages.refreshed(request, await _bars(request))

    async def _bars(request: Request) -> PagePart:  # `show` passes it to the template
        ...
        return template_pages.part(
            "machine_bars.html", id="bars", path="/machine/bars", seconds=2, status=status
        )

    ROUTES = [Route("/machine", show), Route("/machine/bars", bars)]

Handlers raise ``ApplianceError``: the server shows it as a page, or as a message in the page if a script
or htmx asked. The template extends ``page.html``, which has the navigation, the styles and ``common.js``.
Scripts and styles are files in ``static``; the content security policy forbids inline scripts. Scripts call
the API at ``/_ui/api/v1/...`` (see ``api_proxy``). Links in templates are relative to ``<base>``:
``./machine``, or ``path | url_path``, because a reverse proxy may serve the UI under a path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Match, Route

from appliance.ui import languages, layout, markup, session, static_files

#: Key in an ASGI scope of what the server knows of a page: its navigation, and the appliance's title.
FRAME: Final = "appliance.frame"
#: Key in an ASGI scope of the paths of all pages.
PATHS: Final = "appliance.paths"
#: Header of a request for a part: the digest of what the page shows.
_SHOWN: Final = "x-shown"


class TemplatePage(NamedTuple):
    """A page of the UI without Gradio."""

    path: str  # the one that the navigation links: "/machine"
    title: str
    routes: Sequence[Route]  # all of the page's paths
    listed: bool = True  # whether the navigation links it
    admin: bool = False  # whether only tokens with the scope admin may open it

    def has(self, request: Request) -> bool:
        return self._route(request) is not None

    async def respond(self, request: Request) -> Response:
        """Return the response of the route that matches."""
        found = self._route(request)
        assert found is not None, "the caller has asked has()"
        route, parameters = found
        request.scope["path_params"] = parameters
        response: Response = await route.endpoint(request)
        return response

    def _route(self, request: Request) -> tuple[Route, dict[str, Any]] | None:
        scope = {**request.scope, "root_path": "", "path": request.scope["path"]}
        for route in self.routes:
            match, found = route.matches(scope)
            if match is Match.FULL:
                return route, found.get("path_params", {})
        return None


def respond(request: Request, template: str, *, title: str, status: int = 200, **values: Any) -> Response:
    """Render ``template``, which extends ``page.html``."""
    found = markup.render(
        template,
        base=f"{session.prefix(request)}/",
        static=f".{static_files.PATH}",
        icon=layout.ICON,
        title=title,
        theme=layout.chosen_theme(request),
        language=languages.current(),
        direction=languages.direction(),
        texts=languages.texts_of_scripts(),
        navigation=request.scope[FRAME],
        user=session.current(request),
        **values,
    )
    return HTMLResponse(found, status, HEADERS)


class PagePart(NamedTuple):
    """A part of a page that refreshes itself. In a template it is ``{{ part }}``."""

    html: Markup
    digest: str  # of what it shows

    def __html__(self) -> str:
        return self.html


def part(template: str, *, id: str, path: str, seconds: float | None, **values: Any) -> PagePart:
    """Render ``template`` into an element that htmx asks ``path`` for every ``seconds``; None: never.

    The event ``refresh`` on the element refreshes it at once. The handler of ``path`` returns ``refreshed``.
    """
    html = markup.render(template, **values)
    digest = hashlib.sha256(html.encode(errors="replace")).hexdigest()[:16]
    found = markup.render("part.html", id=id, path=path, seconds=seconds, digest=digest, html=html)
    return PagePart(found, digest)


def refreshed(request: Request, found: PagePart) -> Response:
    """Return a part that htmx asked for, or nothing (204) if the page shows the same already.

    So what the reader has selected or opened in it stays.
    """
    if request.headers.get(_SHOWN) == found.digest:
        return Response(status_code=204, headers=HEADERS)
    return HTMLResponse(found.html, headers=HEADERS)


def fragment(template: str, **values: Any) -> Response:
    """Render a part of a page."""
    return HTMLResponse(markup.render(template, **values), headers=HEADERS)


HEADERS: Final = {
    "content-security-policy": "; ".join(
        (
            "default-src 'self'",
            "script-src 'self'",
            "style-src 'self'",
            "style-src-attr 'unsafe-inline'",  # widths of bars
            "img-src 'self' data: blob: https:",  # images of models and outputs
            "media-src 'self' data: blob:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
    "vary": "HX-Request",
}
