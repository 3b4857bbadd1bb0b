"""How answers are put on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from appliance import wire
from appliance.errors import ApplianceError, Throttled, Unauthenticated


def json(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, base: str = ""
) -> Response:
    """``value`` as JSON; ``base`` is the origin of files in it."""
    return Response(wire.encode(value, base), status, headers, "application/json")


def error(problem: ApplianceError, *, post: bool) -> Response:
    """The one shape of every refusal; ``post`` says that trying again might do the work twice."""
    headers: dict[str, str] = {}
    if isinstance(problem, Throttled):
        headers["Retry-After"] = str(problem.retry_after)
    if isinstance(problem, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if post and problem.status >= 500:
        headers["x-should-retry"] = "false"
    return Response(msgspec.json.encode(problem.body()), problem.status, headers, "application/problem+json")
