"""Routes for monitoring: liveness, readiness and metrics."""

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
from appliance.gateway.api.services import Services, services_of
from appliance.observability.metrics import USAGE_BY, MachineState
from appliance.protocols.admin_types import HealthResponse, ReadinessResponse

REUSE_SECONDS: Final = 1.0  # seconds for which the result of a check is reused
CHECK_TIMEOUT: Final = 5.0  # seconds that a check may take


class Check:
    """A check of the appliance whose result is reused, so that frequent requests cause no load."""

    def __init__(self, problem: str, works: Callable[[], Awaitable[bool]]) -> None:
        """``works`` returns whether the check succeeds, and must not raise.

        ``problem`` is the reason to report if ``works`` returns False or takes longer than ``CHECK_TIMEOUT``.
        """
        self._problem = problem
        self._works = works
        self._task: asyncio.Future[bool] | None = None
        self._began = 0.0

    async def problem(self) -> str | None:
        now = time.monotonic()
        if self._task is None or (self._task.done() and now - self._began >= REUSE_SECONDS):
            self._task = asyncio.ensure_future(self._works())
            self._began = now
        done, _ = await asyncio.wait([self._task], timeout=CHECK_TIMEOUT)
        return None if done and self._task.result() else self._problem


async def get_health(request: Request) -> Response:
    """``GET /healthz``: needs no token."""
    return responses.json(HealthResponse(status="ok"))


async def get_readiness(request: Request) -> Response:
    """``GET /readyz``: 200 if predictions are accepted, else 503 with the reasons. It needs no token."""
    found = [services_of(request).engine.problem]
    if found == [None]:
        found += await asyncio.gather(*(check.problem() for check in request.app.checks))
    reasons = [reason for reason in found if reason is not None]
    if reasons:
        return responses.json(ReadinessResponse(status="not ready", reasons=reasons), 503)
    return responses.json(ReadinessResponse(status="ready"))


async def get_metrics(request: Request) -> Response:
    """``GET /metrics``: for Prometheus.

    The metrics cover the models of all owners, so only admins and the account of models.yaml may see them.
    """
    services = services_of(request)
    caller = await requests.caller(request, Scope.READ)
    account = services.config.server.account
    if (caller.owner != account and not caller.sees_all) or caller.access.restricted:
        raise PermissionDenied(
            f'Metrics need a token of the account "{account}" or the scope "{Scope.ADMIN}", '
            "and the token may not be limited to some models."
        )
    used = await services.store.usage.rows(USAGE_BY)
    accept = request.headers.get("accept", "")
    disk = services.storage.disk()
    machine = MachineState(
        disk.total,
        disk.free,
        [*services.reload.left_out, *services.builds.left_out],
        services.sampler.history.newest,
    )
    encode = services.metrics.collect(accept, used, services.webhooks.outcomes, machine)
    page, content_type = await asyncio.to_thread(encode)
    return Response(page, 200, {"content-type": content_type})


def checks(services: Services) -> tuple[Check, ...]:

    async def writable() -> bool:
        try:
            await services.store.check()
        except StoreError:
            return False
        return True

    return (
        Check("the database cannot be written", writable),
        Check("Ray Serve does not answer", services.cluster.answers),
    )


ROUTES: Final = (
    Route("/healthz", get_health, methods=["GET"]),
    Route("/readyz", get_readiness, methods=["GET"]),
    Route("/metrics", get_metrics, methods=["GET"]),
)
