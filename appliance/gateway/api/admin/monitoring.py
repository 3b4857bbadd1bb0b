"""Routes for monitoring: whether the appliance is alive, whether it can take work, and its metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import PermissionDenied, StoreError
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.services import Services
from appliance.observability.metrics import USAGE_BY

FRESH: Final = 1.0  # seconds for which a check is not made again, whoever asks
PATIENCE: Final = 5.0  # seconds that a check may take


class Check:
    """One thing that must work; checked at most once at a time, and once in ``FRESH`` seconds."""

    def __init__(self, problem: str, works: Callable[[], Awaitable[bool]]) -> None:
        """``problem`` is what is said when it does not; ``works`` raises nothing."""
        self._problem = problem
        self._works = works
        self._task: asyncio.Future[bool] | None = None
        self._began = 0.0

    async def problem(self) -> str | None:
        """Return what is wrong; None if nothing is."""
        now = time.monotonic()
        if self._task is None or (self._task.done() and now - self._began >= FRESH):
            self._task = asyncio.ensure_future(self._works())
            self._began = now
        done, _ = await asyncio.wait([self._task], timeout=PATIENCE)
        return None if done and self._task.result() else self._problem


class Monitoring:
    """The routes for monitoring."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._checks = (
            Check("the database cannot be written", self._writable),
            Check("Ray Serve does not answer", services.cluster.answers),
        )

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        return [
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        """``GET /healthz``: the gateway is alive. Needs no token and tells nothing else."""
        return responses.json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """``GET /readyz``: 200 if new work is taken, else 503 with the reasons. Needs no token."""
        found = [self._services.engine.problem]
        if found == [None]:
            found += await asyncio.gather(*(check.problem() for check in self._checks))
        reasons = [reason for reason in found if reason is not None]
        if reasons:
            return responses.json({"status": "not ready", "reasons": reasons}, 503)
        return responses.json({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``, for Prometheus: for admins, and for the account of models.yaml.

        They tell of the models of all owners, so other accounts do not see them.
        """
        caller = await requests.caller(request, self._services, Scope.READ)
        account = self._services.config.server.account
        if caller.owner != account and not caller.may(Scope.ADMIN):
            raise PermissionDenied(f'Metrics are for tokens of the account "{account}", and for admins.')
        used = await self._services.store.usage.rows(USAGE_BY)
        accept = request.headers.get("accept", "")
        encode = self._services.metrics.page(accept, used, self._services.webhooks.outcomes)
        page, content_type = await asyncio.to_thread(encode)
        return Response(page, 200, {"content-type": content_type})

    async def _writable(self) -> bool:
        try:
            await self._services.store.check()
        except StoreError:
            return False
        return True
