"""Routes of Anthropic's Messages API, for language models."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.gateway.api.compat import calls
from appliance.gateway.api.compat.calls import MESSAGES
from appliance.gateway.api.errors import ANTHROPIC
from appliance.protocols.compat_types import CountTokensRequest, MessageRequest
from appliance.runners import operations


async def create_message(request: Request) -> Response:
    return await calls.run_operation(request, operations.MESSAGES, MESSAGES, MessageRequest)


async def count_tokens(request: Request) -> Response:
    """``POST /messages/count_tokens``: loads the model, whose tokenizer counts."""
    return await calls.run_operation(
        request, operations.COUNT_TOKENS, MESSAGES, CountTokensRequest, streams=False
    )


ROUTES: Final = (
    Route(f"{ANTHROPIC}/v1/messages", create_message, methods=["POST"]),
    Route(f"{ANTHROPIC}/v1/messages/count_tokens", count_tokens, methods=["POST"]),
)
