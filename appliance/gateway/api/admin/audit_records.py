"""Routes that list the audit log, and by which the UI records that people sign in and out."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.audit import AuditRecord
from appliance.domain.errors import FieldProblem, InvalidInput, NotFound, PermissionDenied
from appliance.domain.token import Scope
from appliance.gateway.api import audit, paging, requests, responses
from appliance.gateway.api.services import services_of
from appliance.protocols import serializers
from appliance.protocols.account_types import SignOutResponse
from appliance.protocols.audit_types import AuditRecordResponse
from appliance.store import AuditFilter

_LONGEST: Final = 200  # characters of a filter


async def list_records(request: Request) -> Response:
    """``GET /admin/audit``: newest first; ``who``, ``action``, ``object``, ``since``, ``until`` narrow it."""
    await requests.caller(request, Scope.ADMIN)
    size = requests.limit(request, paging.PAGE, paging.PAGE)
    since, until = paging.instant(request, "since"), paging.instant(request, "until")
    filters: AuditFilter = {
        "who": _text(request, "who"),
        "action": _text(request, "action"),
        "object": _text(request, "object"),
        "since": None if since is None else _iso(since),
        "until": None if until is None else _iso(until),
    }
    found = await services_of(request).store.audit.newest(
        before=_cursor(request), limit=size + 1, filters=filters
    )
    more, page = len(found) > size, found[:size]
    next = None
    if more:
        url = request.url.include_query_params(cursor=page[-1].number)
        next = f"{requests.base_url(request)}{request.url.path}?{url.query}"
    return responses.json(serializers.page([_response(each) for each in page], next=next))


async def record_session(request: Request) -> Response:
    """``POST /admin/signins`` and ``/admin/signouts``: record that a token signs in or out of the UI.

    Repetitions within a minute are not recorded.
    """
    caller = await requests.caller(request, Scope.READ)
    if caller.prediction is not None:
        raise PermissionDenied("The token of a running prediction cannot sign in or out: use another token.")
    audit.describe(request, object=caller.name)
    return Response(status_code=204)


async def sign_out(request: Request) -> Response:
    """``POST /admin/signouts``: end the session of the caller; for a token, only record the sign-out.

    The response has a body if the person can also sign out of the identity provider.
    """
    services = services_of(request)
    caller = await requests.caller(request, Scope.READ)
    if caller.session is None:
        return await record_session(request)
    ended = audit.event(request, object=caller.session)
    await services.store.users.end_session(caller.session, caller.owner, time.time(), ended)
    services.auth.forget(caller.session)
    url = await services.sign_on.end_session_url() if caller.signed_in_with == "provider" else None
    return Response(status_code=204) if url is None else responses.json(SignOutResponse(url=url))


def _text(request: Request, key: str) -> str | None:
    text = request.query_params.get(key, "").strip()
    if len(text) > _LONGEST:
        described = f"Must be at most {_LONGEST} characters long"
        raise InvalidInput([FieldProblem("string_lte", key, described)])
    return text or None


def _cursor(request: Request) -> int | None:
    text = request.query_params.get("cursor", "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise NotFound("Invalid cursor")
    return int(text)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _response(record: AuditRecord) -> AuditRecordResponse:
    fields = msgspec.structs.asdict(record)
    fields.pop("body")
    return AuditRecordResponse(**fields)


ROUTES: Final = (
    Route("/admin/audit", list_records, methods=["GET"]),
    Route("/admin/signins", record_session, methods=["POST"]),
    Route("/admin/signouts", sign_out, methods=["POST"]),
)
