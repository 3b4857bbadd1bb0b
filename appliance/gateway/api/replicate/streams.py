"""Streams: a prediction's output as server-sent events, at an address that needs no token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from appliance.domain.prediction import Prediction
from appliance.gateway.api import requests
from appliance.gateway.api.services import Services
from appliance.protocols import serializers

#: Seconds of silence after which a comment is sent; one client gives up after 30.
IDLE: Final = 10.0
HEADERS: Final = {"Cache-Control": "no-cache, no-store", "X-Accel-Buffering": "no"}


class Streams:
    """The one route about streams. Its address carries 256 random bits, and that is all it asks for:
    two official clients send no token to it.
    """

    def __init__(self, services: Services) -> None:
        """``services`` is what it works with."""
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        return [
            Route("/v1/streams/{token}", self.get, methods=["GET"]),
            Route("/v1/files/stream/{token}", self.get, methods=["GET"]),
        ]

    async def get(self, request: Request) -> Response:
        """``GET /streams/{token}``: from the beginning, or from behind ``Last-Event-ID``."""
        record = await self._services.engine.by_stream_token(request.path_params["token"])
        after = serializers.event_number(request.headers.get("last-event-id"))
        events = self._events(record, after, requests.origin(request, self._services))
        return StreamingResponse(events, 200, HEADERS, "text/event-stream")

    async def _events(self, record: Prediction, after: int, base: str) -> AsyncIterator[bytes]:
        yield serializers.HEARTBEAT  # proxies pass on the headers once there is a body
        async for seen in self._services.engine.follow(record, after, idle=IDLE):
            if seen is None:
                yield serializers.HEARTBEAT
            elif isinstance(seen, Prediction):
                yield serializers.ending(seen, self._services.engine.item_count(seen), after)
            else:
                yield serializers.outputs(record, seen, base)
