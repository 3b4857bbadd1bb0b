"""The route for webhook keys, and the parsing of a request's webhook URL and event filter."""

from __future__ import annotations

import time
from typing import Any, Final

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain import input_schema
from appliance.domain.errors import FieldProblem, InvalidInput, UrlRefused
from appliance.domain.prediction import WEBHOOK_EVENTS, Webhook
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.services import services_of
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.webhooks import sender
from appliance.protocols.response_types import WebhookSecretResponse


async def get_webhook_secret(request: Request) -> Response:
    """``GET /webhooks/default/secret``: the caller's newest key."""
    caller = await requests.caller(request, Scope.RUN)
    newest, *_ = await sender.keys(services_of(request).store, caller.owner, time.time())
    return responses.json(WebhookSecretResponse(key=newest))


def webhook(request: Request, given: dict[str, Any]) -> Webhook | None:
    """Return the webhook that ``given``, the body of a request, asks for.

    Raises:
        InvalidInput: the URL or an event is not valid, or the URL may not be called.
    """
    events = given.get("webhook_events_filter")
    problems = [] if events is None else _wrong_events(events)
    url = given.get("webhook")
    if url is not None:
        problems += _wrong_url(url, services_of(request).fetch_guard)
    if problems:
        raise InvalidInput(problems)
    if url is None:
        return None
    return Webhook(
        url=url,
        events=tuple(WEBHOOK_EVENTS if events is None else events),
        origin=requests.origin(request),
    )


def _wrong_events(events: Any) -> list[FieldProblem]:
    field = "webhook_events_filter"
    if not isinstance(events, list):
        found = input_schema.type_name(events)
        return [FieldProblem("invalid_type", field, f"Invalid type. Expected: array, given: {found}")]
    choices = ", ".join(f'"{event}"' for event in WEBHOOK_EVENTS)
    return [
        FieldProblem("enum", f"{field}.{index}", f"{field}.{index} must be one of the following: {choices}")
        for index, event in enumerate(events)
        if event not in WEBHOOK_EVENTS
    ]


def _wrong_url(url: Any, fetch_guard: FetchGuard) -> list[FieldProblem]:
    if not isinstance(url, str):
        found = input_schema.type_name(url)
        return [FieldProblem("invalid_type", "webhook", f"Invalid type. Expected: string, given: {found}")]
    try:
        parsed = httpx.URL(url)
        if parsed.scheme in {"http", "https"} and parsed.host and "%" not in parsed.host:
            fetch_guard.check(parsed)
            return []
    except UrlRefused as error:
        return [FieldProblem("address", "webhook", error.detail)]
    except (httpx.InvalidURL, ValueError, UnicodeError):
        pass
    return [FieldProblem("format", "webhook", "Does not match format 'uri'")]


ROUTES: Final = (Route("/v1/webhooks/default/secret", get_webhook_secret, methods=["GET"]),)
