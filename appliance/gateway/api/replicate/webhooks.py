"""The route for the webhook signing key, and the webhook that a prediction request asks for."""

from __future__ import annotations

import time
from typing import Final

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.errors import FieldProblem, InvalidInput, UrlRefused
from appliance.domain.prediction import WEBHOOK_EVENTS, Webhook
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.services import services_of
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.webhooks import sender
from appliance.protocols.request_types import PredictionRequest
from appliance.protocols.response_types import WebhookSecretResponse

_MAX_HOST: Final = 253  # characters, RFC 1035, section 2.3.4; PostgreSQL cannot index texts of thousands


async def get_webhook_secret(request: Request) -> Response:
    caller = await requests.caller(request, Scope.RUN)
    newest, *_ = await sender.keys(services_of(request).store, caller.owner, time.time())
    return responses.json(WebhookSecretResponse(key=newest))


def webhook(request: Request, given: PredictionRequest) -> Webhook | None:
    """Return the webhook of a request for a prediction; None without one.

    Raises:
        InvalidInput: the URL is not valid, or models.yaml does not permit requests to its address.
    """
    url = given.webhook
    if url is None:
        return None
    _check_url(url, services_of(request).fetch_guard)
    events = WEBHOOK_EVENTS if given.webhook_events_filter is None else given.webhook_events_filter
    return Webhook(url=url, events=tuple(events), origin=requests.base_url(request))


def _check_url(url: str, fetch_guard: FetchGuard) -> None:
    problem = FieldProblem("format", "webhook", "Does not match format 'uri'")
    try:
        parsed = httpx.URL(url)
        host = parsed.raw_host.decode("ascii")
        if parsed.scheme in {"http", "https"} and 0 < len(host) <= _MAX_HOST and "%" not in parsed.host:
            fetch_guard.check(parsed)
            return
    except UrlRefused as error:
        problem = FieldProblem("address", "webhook", error.detail)
    except (httpx.InvalidURL, ValueError, UnicodeError):
        pass
    raise InvalidInput([problem])


ROUTES: Final = (Route("/v1/webhooks/default/secret", get_webhook_secret, methods=["GET"]),)
