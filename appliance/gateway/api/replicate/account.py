"""The account behind a token, and the hardware of this machine."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.services import Services
from appliance.protocols import serializers
from appliance.protocols.response_types import HardwareResponse


class Account:
    """The routes about who calls and what there is."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        return [
            Route("/v1/account", self.get, methods=["GET"]),
            Route("/v1/hardware", self.hardware, methods=["GET"]),
        ]

    async def get(self, request: Request) -> Response:
        """``GET /account``; also the sign-in check of some clients."""
        caller = await requests.caller(request, self._services, Scope.READ)
        named = account_name(caller.owner, self._services)
        return responses.json(
            serializers.account(caller.owner, named, requests.origin(request, self._services))
        )

    async def hardware(self, request: Request) -> Response:
        """``GET /hardware``: a bare array, each kind of device once."""
        await requests.caller(request, self._services, Scope.READ)
        kinds = {device.sku: device.label for device in self._services.devices}
        return responses.json([HardwareResponse(name=name, sku=sku) for sku, name in kinds.items()])


def account_name(username: str, services: Services) -> str | None:
    """Return the display name of an account, if models.yaml has one."""
    server = services.config.server
    return server.account_name if username == server.account else None
