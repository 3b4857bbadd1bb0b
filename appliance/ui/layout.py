"""What all pages share: the navigation, their icon, headers, and pages without navigation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from appliance.ui import languages, markup
from appliance.ui.languages import gettext as _
from appliance.ui.session import UserSession
from appliance.ui.session import current as current_session
from appliance.ui.session import prefix as path_prefix

#: For the navigation and all pages.
CSS: Final = "".join(
    (Path(__file__).parent / "static" / name).read_text() for name in ("style.css", "outputs.css")
)

#: Cookie with the colour scheme that common.js sets.
THEME_COOKIE: Final = "appliance_theme"

#: The icon of all pages.
ICON: Final = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='4' fill='%230f766e'/%3E"
    "%3Cpath d='M4 11.5 8 4l4 7.5' stroke='white' stroke-width='1.8' stroke-linecap='round' "
    "stroke-linejoin='round' fill='none'/%3E%3Ccircle cx='8' cy='9.6' r='1.1' fill='%235eead4'/%3E%3C/svg%3E"
)


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


def listed(pages: Sequence[Listed], user: UserSession) -> list[Listed]:
    """Return the pages that the navigation links for ``user``."""
    return [page for page in pages if page.listed and (user.admin or not page.admin)]


def here(request: Request) -> str:
    """Return the path and query of the page, relative to its ``<base>``: a link "#part" needs them."""
    query = request.url.query
    return "." + quote(request.scope["path"]) + (f"?{query}" if query else "")


def chosen_theme(request: Request) -> str:
    """Return the colour scheme that the user has chosen in a page: light, dark, or empty for the system's."""
    found = request.cookies.get(THEME_COOKIE, "")
    return found if found in {"light", "dark"} else ""


def security_headers(rules: Mapping[str, str]) -> dict[str, str]:
    """Return the HTTP headers of a page, with the rules of its content security policy."""
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in rules.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
        "cache-control": "no-store",
    }


def page_without_navigation(template: str, status: int, request: Request, **values: Any) -> HTMLResponse:
    """Render a template that extends ``alone.html``; ``values`` must contain ``title``."""
    headers = security_headers(
        {
            "default-src": "'none'",
            "style-src": "'unsafe-inline'",
            "img-src": "data:",
            "form-action": "'self'",
            "base-uri": "'self'",
            "frame-ancestors": "'none'",
        }
    )
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
