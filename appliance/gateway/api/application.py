"""The ASGI application: normalized paths, CORS, routing, and the translation of errors to responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import Message, Receive, Scope, Send

from appliance.domain.errors import ApplianceError, BadRequest, DiskFull, MethodNotAllowed, NotFound
from appliance.gateway.api import audit, errors, reference, requests
from appliance.gateway.api.admin import (
    account_data,
    additions,
    audit_records,
    builds,
    config_files,
    conversations,
    examples,
    limits,
    model_logs,
    monitoring,
    nodes,
    sessions,
    settings,
    status,
    tokens,
    usage,
)
from appliance.gateway.api.admin import predictions as admin_predictions
from appliance.gateway.api.compat import (
    anthropic,
    audio,
    embeddings,
    images,
    openai,
    rerank,
    stored_responses,
)
from appliance.gateway.api.rate_limit import RateLimitState
from appliance.gateway.api.replicate import (
    account,
    collections,
    deployments,
    files,
    models,
    predictions,
    streams,
    trainings,
    versions,
    webhooks,
)
from appliance.gateway.api.services import Services
from appliance.gateway.api.ui_proxy import UiProxy

_log = logging.getLogger(__name__)

#: Every route, in the order in which they are tried.
ROUTES: Final = (
    *predictions.ROUTES,
    *streams.ROUTES,
    *deployments.ROUTES,
    *trainings.ROUTES,
    *files.ROUTES,
    *models.ROUTES,
    *builds.ROUTES,
    *versions.ROUTES,
    *collections.ROUTES,
    *account.ROUTES,
    *webhooks.ROUTES,
    *status.ROUTES,
    *nodes.ROUTES,
    *monitoring.ROUTES,
    *admin_predictions.ROUTES,
    *model_logs.ROUTES,
    *tokens.ROUTES,
    *sessions.ROUTES,
    *settings.ROUTES,
    *audit_records.ROUTES,
    *usage.ROUTES,
    *limits.ROUTES,
    *examples.ROUTES,
    *account_data.ROUTES,
    *conversations.ROUTES,
    *additions.ROUTES,
    *config_files.ROUTES,
    *reference.ROUTES,
    *openai.ROUTES,
    *stored_responses.ROUTES,
    *embeddings.ROUTES,
    *rerank.ROUTES,
    *images.ROUTES,
    *audio.ROUTES,
    *anthropic.ROUTES,
)

#: The route label in the metrics of requests that match no route.
UNMATCHED: Final = "unmatched"

_CORS: Final = {
    "access-control-allow-credentials": "true",
    "access-control-expose-headers": "location, preference-applied, retry-after, x-request-id, request-id, "
    "ratelimit-limit, ratelimit-remaining, ratelimit-reset, x-budget-warning",
}
_PREFLIGHT: Final = {
    "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, QUERY",
    "access-control-max-age": "86400",
}
_ALLOWED_HEADERS: Final = "authorization, content-type, prefer, cancel-after, last-event-id"


def create_api(services: Services, ui: Path | None = None) -> Application:
    """Return the application. It forwards other paths than the API's to the UI at the Unix socket ``ui``."""
    api = frozenset(route.path.split("/")[1] for route in ROUTES)
    return Application(services, None if ui is None else UiProxy(ui, api))


class _CountedRoute(Route):
    """A route that puts its path template into the ASGI scope, for metrics and traces.

    It calls its endpoint without Starlette's handlers of exceptions, because ``Application`` handles all.
    """

    def __init__(self, route: Route) -> None:
        super().__init__(route.path, route.endpoint, methods=route.methods)
        endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = respond

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        if match is Match.FULL:  # a request with another method gets 405 and counts as unmatched
            child_scope[requests.ROUTE] = self.path
        return match, child_scope


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound


_ROUTER: Final = Router(
    [_CountedRoute(route) for route in ROUTES],
    redirect_slashes=False,
    default=_not_found,
)


class Application:
    """Handles every request: routes it, and adds CORS, rate limit headers, error responses and metrics."""

    def __init__(self, services: Services, ui: UiProxy | None = None) -> None:
        """Without ``ui``, paths outside the API get 404."""
        self.services = services
        self.checks = monitoring.checks(services)
        self._ui = ui

    async def close(self) -> None:
        if self._ui is not None:
            await self._ui.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"the appliance does not support {scope['type']}")
        if not scope["path"].startswith("/"):  # OPTIONS may request "*"
            problem = BadRequest(f'"{scope["path"][:100]}" is not a path; paths begin with "/".')
            await errors.response(problem, "/", post=False)(scope, receive, send)
            return
        # "app" also makes Starlette's routes raise their 405 instead of answering it in plain text.
        scope = {**scope, "app": self}
        if self._ui is not None and self._ui.takes(scope):
            await self._ui(scope, receive, send)
        else:
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        client_origin = headers.get("origin")
        if client_origin is not None:
            send = _with_cors(send, client_origin)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                allowed_headers = headers.get("access-control-request-headers", _ALLOWED_HEADERS)
                allowed = {**_PREFLIGHT, "access-control-allow-headers": allowed_headers}
                await Response(status_code=204, headers=allowed)(scope, receive, send)
                return
        inner = {**scope, "path": _normalized(scope["path"])}
        status: int | None = None
        problem: ApplianceError | None = None
        began = time.perf_counter()

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                await audit.respond(self.services, inner, message["status"], problem)
                status = message["status"]
                if (id := audit.request_id(inner)) is not None:
                    MutableHeaders(scope=message).setdefault("x-request-id", id)
                _add_limits(message, inner)
            await send(message)

        try:
            await _ROUTER(inner, receive, send_and_record)
        except Exception as error:
            if status is not None:  # a status was sent already: raise, which closes the connection
                raise
            problem = _to_appliance_error(error, scope)
            response = errors.response(problem, inner["path"], post=scope["method"] == "POST")
            await response(scope, receive, send_and_record)
        finally:
            if status is not None:  # None: the client disconnected before the response
                took = time.perf_counter() - began
                self.services.metrics.count_request(
                    inner.get(requests.ROUTE, UNMATCHED), scope["method"], status, took
                )
            if self.services.tracing is not None and requests.SPAN in inner:
                self.services.tracing.end_request(inner[requests.SPAN], status)


def _normalized(path: str) -> str:
    """Remove the variations of a path that clients send: /v1/v1 for /v1, and a slash at the end."""
    if path.startswith("/v1/v1/"):
        path = path.removeprefix("/v1")
    return path.rstrip("/") or "/"


def _to_appliance_error(error: Exception, scope: Scope) -> ApplianceError:
    if DiskFull.is_cause_of(error):
        full = DiskFull(str(error))
        full.__cause__ = error
        error = full
    match error:
        case ApplianceError():
            if error.status >= 500:
                _log.error("%s %s: %s", scope["method"], scope["path"], error)
            return error
        case HTTPException(status_code=405):
            return MethodNotAllowed(f'Method "{scope["method"]}" not allowed.')
        case HTTPException(status_code=404):
            return NotFound()
    _log.error("%s %s failed with an unexpected error", scope["method"], scope["path"], exc_info=error)
    return ApplianceError("The appliance failed to respond to this request; the reason is in its log.")


def _add_limits(message: Message, scope: Scope) -> None:
    state: RateLimitState | None = scope.get(requests.RATE_LIMIT)
    warning: str | None = scope.get(requests.BUDGETS)
    headers = MutableHeaders(scope=message)
    if warning is not None:
        headers["x-budget-warning"] = warning
    if state is not None:
        headers["ratelimit-limit"] = str(state.limit)
        headers["ratelimit-remaining"] = str(state.remaining)
        headers["ratelimit-reset"] = str(state.reset)


def _with_cors(send: Send, client_origin: str) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(_CORS)
            headers["access-control-allow-origin"] = client_origin
            headers.add_vary_header("Origin")
        await send(message)

    return with_headers
