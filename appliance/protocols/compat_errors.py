"""Error bodies in the formats of OpenAI's and Anthropic's APIs."""

from __future__ import annotations

from typing import Final

from appliance.protocols.compat_types import (
    AnthropicErrorDetail,
    AnthropicErrorResponse,
    OpenAIErrorDetail,
    OpenAIErrorResponse,
)

#: Path prefixes of the routes of each API.
OPENAI: Final = "/openai"
ANTHROPIC: Final = "/anthropic"

_OPENAI_TYPES: Final = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def openai_error(
    status: int, message: str, parameter: str | None = None, code: str | None = None
) -> OpenAIErrorResponse:
    """Return the error for an HTTP status. ``parameter`` is the name of the wrong field of the request."""
    kind = "server_error" if status >= 500 else _OPENAI_TYPES.get(status)
    return OpenAIErrorResponse(
        error=OpenAIErrorDetail(
            message=message, type=kind or "invalid_request_error", param=parameter, code=code
        )
    )


def anthropic_error(status: int, message: str) -> AnthropicErrorResponse:
    """Return the error for an HTTP status."""
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return AnthropicErrorResponse(type="error", error=AnthropicErrorDetail(type=kind, message=message))
