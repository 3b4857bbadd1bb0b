"""Routes for the account of a token and the hardware of this machine."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.services import services_of
from appliance.protocols import serializers
from appliance.protocols.response_types import AccountResponse, HardwareResponse


async def get_account(request: Request) -> Response:
    """``GET /account``: some clients use it to check a token."""
    caller = await requests.caller(request, Scope.READ)
    return responses.json(account_response(caller.owner, request))


async def list_hardware(request: Request) -> Response:
    """``GET /hardware``: each kind of device once, as an array without pages."""
    await requests.caller(request, Scope.READ)
    kinds = {device.sku: device.label for device in services_of(request).devices}
    return responses.json([HardwareResponse(name=name, sku=sku) for sku, name in kinds.items()])


def account_response(username: str, request: Request) -> AccountResponse:
    server = services_of(request).config.server
    name = server.account_name if username == server.account else None
    return serializers.account(username, name, requests.base_url(request))


ROUTES: Final = (
    Route("/v1/account", get_account, methods=["GET"]),
    Route("/v1/hardware", list_hardware, methods=["GET"]),
)
