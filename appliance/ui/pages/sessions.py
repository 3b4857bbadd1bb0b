"""The page of sessions: a person sees their own, an operator those of all people."""

from __future__ import annotations

import re
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.protocols.account_types import SessionPage
from appliance.ui import session, template_pages
from appliance.ui.languages import gettext as _

#: Names in User-Agent headers, of which the first that matches is shown. Edge also names Chrome, and Chrome
#: also names Safari.
_BROWSERS: Final = (("Edg", "Edge"), ("Firefox", "Firefox"), ("Chrome", "Chrome"), ("Safari", "Safari"))
_SYSTEMS: Final = (
    *(("Android", "Android"), ("iPhone", "iOS"), ("iPad", "iOS")),
    *(("Windows", "Windows"), ("Mac OS X", "macOS"), ("Linux", "Linux")),
)


async def show(request: Request) -> Response:
    everybody = session.current(request).admin
    values = await _values(request)
    return template_pages.respond(
        request, "sessions.html", title=_("Sessions"), everybody=everybody, **values
    )


async def listed(request: Request) -> Response:
    return template_pages.fragment("sessions_list.html", **await _values(request))


async def _values(request: Request) -> dict[str, Any]:
    found = (await session.current(request).caller.get_as(SessionPage, "/admin/sessions")).results
    return {"rows": [(each, browser_name(each.browser)) for each in found]}


def browser_name(header: str) -> str:
    """Return the browser and the system that a User-Agent header names, such as "Firefox, Linux"."""
    names = []
    for known in (_BROWSERS, _SYSTEMS):
        names += [name for part, name in known if re.search(rf"\b{part}\b", header)][:1]
    return ", ".join(names) or header[:60]


ROUTES: Final = (Route("/sessions", show), Route("/sessions/list", listed))
