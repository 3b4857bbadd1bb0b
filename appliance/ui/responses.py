"""Helpers for ASGI responses."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send


def with_headers(send: Send, headers: Mapping[str, str]) -> Send:
    """Return a ``send`` that adds ``headers`` to responses that are not errors."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers
