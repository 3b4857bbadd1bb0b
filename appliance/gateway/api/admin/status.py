"""The appliance itself: what is loaded, loading and unloading."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance import __version__
from appliance.domain.errors import BadRequest, ConfigError
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.replicate.account import account_name
from appliance.gateway.api.services import Services
from appliance.gateway.catalogue.catalogue import Entry


class Admin:
    """Routes that Replicate has not."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Return the routes of this resource."""
        return [
            Route("/admin/me", self.me, methods=["GET"]),
            Route("/admin/status", self.status, methods=["GET"]),
            Route("/admin/residency", self.residency, methods=["GET"]),
            Route("/admin/reload", self.reload, methods=["POST"]),
            Route("/admin/models/{owner}/{name}/load", self.load, methods=["POST"]),
            Route("/admin/models/{owner}/{name}/unload", self.unload, methods=["POST"]),
            Route("/admin/models/{owner}/{name}/pin", self.pin, methods=["POST"]),
            Route("/admin/models/{owner}/{name}/unpin", self.unpin, methods=["POST"]),
        ]

    async def me(self, request: Request) -> Response:
        """``GET /admin/me``: whose this token is, what it is called and what it may do."""
        caller = await requests.caller(request, self._services, Scope.READ)
        named = account_name(caller.owner, self._services) or caller.owner
        told = {"username": caller.owner, "name": named, "token": caller.name, "scope": caller.scope.value}
        return responses.json(told)

    async def status(self, request: Request) -> Response:
        """``GET /admin/status``: devices and models with their states, and models that cannot be served."""
        await requests.caller(request, self._services, Scope.READ)
        status = self._services.engine.status()
        known = {device.name: msgspec.to_builtins(device) for device in self._services.devices}
        devices = [{**known.get(device["name"], {}), **device} for device in status["devices"]]
        left_out = self._services.reload.left_out | self._services.pushes.left_out
        return responses.json(
            {
                "version": __version__,
                "uptime": round(time.time() - self._services.started_at, 3),
                **status,
                "devices": devices,
                "not_served": [{"name": name, "problem": why} for name, why in left_out.items()],
            }
        )

    async def residency(self, request: Request) -> Response:
        """``GET /admin/residency``: who holds which memory, who waits for it, what was decided and why."""
        await requests.caller(request, self._services, Scope.ADMIN)
        return responses.json(self._services.engine.residency_report())

    async def reload(self, request: Request) -> Response:
        """``POST /admin/reload``: models.yaml is read again; answered once what it changes is in effect."""
        await requests.caller(request, self._services, Scope.ADMIN)
        try:
            report = await self._services.reload.apply(self._services.configure)
        except ConfigError as error:
            raise BadRequest(f"Nothing has changed: {error.detail}") from error
        return responses.json(msgspec.to_builtins(report))

    async def load(self, request: Request) -> Response:
        """``POST /admin/models/{owner}/{name}/load``: answered once the model is ready."""
        entry = await self._entry(request)
        await self._services.engine.load(entry)
        return responses.json({"name": entry.name, "state": self._services.engine.residency(entry).value})

    async def unload(self, request: Request) -> Response:
        """``POST /admin/models/{owner}/{name}/unload``: done once what runs there, or its load, is over."""
        entry = await self._entry(request)
        await self._services.engine.unload(entry)
        return responses.json(
            {"name": entry.name, "state": self._services.engine.residency(entry).value}, 202
        )

    async def pin(self, request: Request) -> Response:
        """``POST /admin/models/{owner}/{name}/pin``: load it, and never evict it."""
        return self._pinned(await self._entry(request), pinned=True)

    async def unpin(self, request: Request) -> Response:
        """``POST /admin/models/{owner}/{name}/unpin``: it may be evicted, although models.yaml pins it."""
        return self._pinned(await self._entry(request), pinned=False)

    def _pinned(self, entry: Entry, *, pinned: bool) -> Response:
        self._services.engine.pin(entry, pinned=pinned)
        body = {
            "name": entry.name,
            "state": self._services.engine.residency(entry).value,
            "pinned": pinned,
            "detail": "Until the appliance is started again: models.yaml is unchanged.",
        }
        return responses.json(body, 202)

    async def _entry(self, request: Request) -> Entry:
        await requests.caller(request, self._services, Scope.ADMIN)
        return self._services.catalogue.resolve("{owner}/{name}".format(**request.path_params))
