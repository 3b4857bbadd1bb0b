"""JSON responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from appliance.protocols import serializers


def json(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, base: str = ""
) -> Response:
    """Return ``value`` as JSON; URLs of files in it begin with ``base``, an origin."""
    return Response(serializers.encode(value, base), status, headers, "application/json")
