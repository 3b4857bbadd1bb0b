"""How answers are put on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from appliance.protocols import serializers


def json(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, base: str = ""
) -> Response:
    """``value`` as JSON; ``base`` is the origin of files in it."""
    return Response(serializers.encode(value, base), status, headers, "application/json")
