"""Forwards requests of the pages' scripts to the API, with the token of the signed-in user.

So scripts call the API as clients do, and the token never reaches the browser. The API checks all rights.
Requests of other sites are refused before (``server``). Bodies and streams of events are streamed.
"""

from __future__ import annotations

from typing import Final

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from appliance.domain.errors import NotFound
from appliance.ui.session import UserSession

#: ``/_ui/api/v1/models`` is forwarded to ``/v1/models``.
PREFIX: Final = "/_ui/api"
#: Routes that only the UI itself calls: their responses have secrets of sessions, which no browser gets.
_SIGN_IN: Final = "/admin/sign-in"
#: Headers of requests that are forwarded.
_REQUEST: Final = (
    "accept",
    "content-type",
    "content-length",
    "prefer",
    "last-event-id",
    "cancel-after",
    "range",
)
#: Headers of responses that are forwarded.
_RESPONSE: Final = (
    "content-type",
    "content-length",
    "content-range",
    "accept-ranges",
    "retry-after",
    "link",
    "x-request-id",
    "content-disposition",
)
#: Types of content that no page could mistake for a document or a script. An SVG file is a document.
_TYPES: Final = ("application/json", "application/problem+json", "text/event-stream", "text/plain")
_MEDIA: Final = ("image/", "audio/", "video/")


def has(path: str) -> bool:
    return path.startswith(f"{PREFIX}/")


async def forward(request: Request, user: UserSession) -> Response:
    """Return the API's response to ``request``.

    Raises:
        NotFound: the response is of a type that only the API's own path serves.
        ApplianceError: the API does not answer.
    """
    path = request.scope["path"].removeprefix(PREFIX)
    if path.startswith(_SIGN_IN):
        raise NotFound(f"{path} is not for scripts of pages: people sign in at /signin.")
    headers = {name: request.headers[name] for name in _REQUEST if name in request.headers}
    has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
    reply = await user.caller.open(
        request.method,
        path,
        query=request.scope["query_string"],
        headers=headers,
        content=request.stream() if has_body else None,
    )
    kind = reply.headers.get("content-type", "application/json").partition(";")[0]
    if kind not in _TYPES and (not kind.startswith(_MEDIA) or "svg" in kind):
        await reply.aclose()
        raise NotFound(f"{path} is not for scripts of pages: open it without {PREFIX}.")
    kept = {name: reply.headers[name] for name in _RESPONSE if name in reply.headers}
    kept |= {
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox; default-src 'none'",
    }
    return StreamingResponse(
        reply.aiter_raw(), reply.status_code, kept, background=BackgroundTask(reply.aclose)
    )
