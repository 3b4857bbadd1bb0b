"""Anthropic's API over language models: messages."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.gateway.api.compat.calls import MESSAGES, Calls
from appliance.gateway.api.errors import ANTHROPIC
from appliance.gateway.api.services import Services
from appliance.runners import operations


class Anthropic:
    """The routes of Anthropic's API."""

    def __init__(self, services: Services) -> None:
        self._calls = Calls(services)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route(f"{ANTHROPIC}/v1/messages", self.create, methods=["POST"]),
            Route(f"{ANTHROPIC}/v1/messages/count_tokens", self.count, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        """``POST /messages``."""
        return await self._calls.operate(request, operations.MESSAGES, MESSAGES, "messages", "max_tokens")

    async def count(self, request: Request) -> Response:
        """``POST /messages/count_tokens``: counted by the tokenizer of the model, which is loaded for it."""
        return await self._calls.operate(
            request, operations.COUNT_TOKENS, MESSAGES, "messages", streams=False
        )
