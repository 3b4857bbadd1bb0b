"""The audit page for administrators: what administrators did, and which requests were refused."""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.protocols.audit_types import AuditPage, AuditRecordResponse
from appliance.ui import session, template_pages
from appliance.ui.languages import gettext as _

_FILTERS: Final = ("who", "action", "object", "since", "until")


async def show(request: Request) -> Response:
    chosen = {key: request.query_params.get(key, "").strip() for key in _FILTERS}
    given = {key: value for key, value in chosen.items() if value}
    page = await session.current(request).caller.get_as(
        AuditPage, "/admin/audit", cursor=request.query_params.get("cursor"), **given
    )
    older = None
    if page.next is not None:
        cursor = parse_qs(urlsplit(page.next).query)["cursor"][0]
        older = f"./audit?{urlencode({**given, 'cursor': cursor})}"
    return template_pages.respond(
        request,
        "audit.html",
        title=_("Audit log"),
        chosen=chosen,
        filtered=bool(given),
        rows=[(each, _details(each)) for each in page.results],
        outcomes={"succeeded": _("succeeded"), "failed": _("failed"), "denied": _("denied")},
        older=older,
    )


def _details(record: AuditRecordResponse) -> str:
    """Return the values before and after the change, and the request, as JSON."""
    fields = {"before": record.before, "after": record.after, "status": record.status}
    fields |= {"request": record.request, "hash": record.hash}
    kept = {key: value for key, value in fields.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False, indent=2)


ROUTES: Final = (Route("/audit", show),)
