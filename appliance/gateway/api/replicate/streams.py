"""The route that streams a prediction's output as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from appliance.domain.prediction import Prediction
from appliance.gateway.api import requests
from appliance.gateway.api.services import services_of
from appliance.gateway.engine import Engine
from appliance.protocols import serializers

#: A comment is sent after this many seconds without an event; one client gives up after 30.
IDLE: Final = 10.0
HEADERS: Final = {"Cache-Control": "no-cache, no-store", "X-Accel-Buffering": "no"}


async def stream_output(request: Request) -> Response:
    """``GET /streams/{token}``: all events of the output, or those after ``Last-Event-ID``.

    The URL carries 256 random bits and needs no token: two official clients send none.
    """
    services = services_of(request)
    record = await services.engine.by_stream_token(request.path_params["token"])
    after = serializers.event_number(request.headers.get("last-event-id"))
    events = _events(record, after, services.engine, requests.base_url(request))
    return StreamingResponse(events, 200, HEADERS, "text/event-stream")


async def _events(record: Prediction, after: int, engine: Engine, base: str) -> AsyncIterator[bytes]:
    yield serializers.HEARTBEAT  # proxies forward the headers with the first byte of the body
    async for seen in engine.follow(record, after, idle=IDLE):
        if seen is None:
            yield serializers.HEARTBEAT
        elif isinstance(seen, Prediction):
            yield serializers.ending(seen, engine.item_count(seen), after)
        else:
            yield serializers.outputs(record, seen, base)


ROUTES: Final = (
    Route("/v1/streams/{token}", stream_output, methods=["GET"]),
    Route("/v1/files/stream/{token}", stream_output, methods=["GET"]),
)
