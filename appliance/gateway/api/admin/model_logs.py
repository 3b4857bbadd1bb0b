"""Routes for the output of worker processes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from appliance.config import secrets
from appliance.domain.errors import PermissionDenied, Unauthenticated
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.replicate.streams import HEADERS, IDLE
from appliance.gateway.api.services import services_of
from appliance.observability import logs
from appliance.protocols import serializers
from appliance.protocols.admin_types import InstanceLog, ModelLogsResponse
from appliance.worker import model_logs
from appliance.worker.model_logs import LogReader

#: Lines of each instance, by default and at most.
LINES: Final = 200
MAX_LINES: Final = 2000
_POLL: Final = 0.5  # seconds between two looks at the files


async def get_logs(request: Request) -> Response:
    """``GET /admin/models/{owner}/{name}/logs``: the last ``lines`` lines of each instance."""
    followed = await _followed(request)
    found = await asyncio.to_thread(followed.read)
    return responses.json(ModelLogsResponse(model=followed.model, instances=found))


async def stream_logs(request: Request) -> Response:
    """``GET /admin/models/{owner}/{name}/logs/events``: the last ``lines`` lines, then all new ones."""
    followed = await _followed(request)
    return StreamingResponse(_events(followed, partial(_allowed, request)), 200, HEADERS, "text/event-stream")


class _Followed:
    """Reads the log files of the instances of one model."""

    def __init__(self, run_dir: Path, model: str, lines: int, secrets: Collection[str]) -> None:
        self.model = model
        self._run_dir = run_dir
        self._lines = lines
        self._secrets = secrets
        self._readers: dict[str, LogReader] = {}

    def read(self) -> list[InstanceLog]:
        """Return the lines since the last call; at most ``lines`` of each instance, with secrets masked."""
        for instance in model_logs.instances(self._run_dir, self.model):
            if instance not in self._readers:
                self._readers[instance] = LogReader(model_logs.log_file(self._run_dir, instance))
        found = []
        for instance, reader in self._readers.items():
            lines = reader.read()[-self._lines :]
            if lines:
                masked = [logs.mask(line, self._secrets) for line in lines]
                found.append(InstanceLog(instance=instance, lines=masked))
        return found


async def _followed(request: Request) -> _Followed:
    caller = await requests.caller(request, Scope.ADMIN)
    services = services_of(request)
    entry = services.catalogue.resolve(requests.model_name(request), caller.access.of_all_accounts())
    lines = requests.limit(request, LINES, MAX_LINES, "lines")
    return _Followed(
        services.reload.run_dir, entry.name, lines, secrets(services.reload.in_force, os.environ)
    )


async def _allowed(request: Request) -> bool:
    try:
        await requests.caller(request, Scope.ADMIN)
    except (Unauthenticated, PermissionDenied):
        return False
    return True


async def _events(followed: _Followed, allowed: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    """Stream new lines until the client disconnects or ``allowed`` returns false."""
    yield serializers.HEARTBEAT  # proxies forward the headers with the first byte of the body
    number, silent, checked = 0, 0.0, time.monotonic()
    while True:
        if time.monotonic() - checked >= IDLE:
            if not await allowed():
                return
            checked = time.monotonic()
        found = await asyncio.to_thread(followed.read)
        for each in found:
            number += 1
            yield serializers.event("lines", str(number), msgspec.json.encode(each).decode())
        silent = 0.0 if found else silent + _POLL
        if silent >= IDLE:
            yield serializers.HEARTBEAT
            silent = 0.0
        await asyncio.sleep(_POLL)


_LOGS: Final = "/admin/models/{owner}/{name}/logs"
ROUTES: Final = (
    Route(_LOGS, get_logs, methods=["GET"]),
    Route(f"{_LOGS}/events", stream_logs, methods=["GET"]),
)
