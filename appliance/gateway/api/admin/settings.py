"""Routes for the config in effect, the machine, and the caller's webhook signing key."""

from __future__ import annotations

import time
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance import machine
from appliance.config import redact
from appliance.domain.token import Scope
from appliance.gateway.api import requests, responses
from appliance.gateway.api.services import services_of
from appliance.gateway.webhooks import sender
from appliance.protocols import serializers
from appliance.protocols.admin_types import Disk, MachineResponse, MainMemory, NewWebhookSecretResponse
from appliance.protocols.request_types import WebhookSecretRequest

#: Seconds for which webhooks are also signed with the replaced key, by default.
KEEP: Final = 86400.0


async def get_config(request: Request) -> Response:
    """``GET /admin/config``: models.yaml as it is in effect, with every default and without secrets."""
    await requests.caller(request, Scope.ADMIN)
    return responses.json(redact(services_of(request).config))


async def get_machine(request: Request) -> Response:
    """``GET /admin/machine``: threads, main memory, and the disk of the data folder."""
    await requests.caller(request, Scope.ADMIN)
    disk = await services_of(request).storage.usage()
    return responses.json(
        MachineResponse(
            threads=machine.cpu_threads(),
            memory=MainMemory(total=machine.main_memory(), available=machine.available_memory()),
            disk=Disk(folder=disk.folder, total=disk.total, free=disk.free, parts=disk.parts),
        )
    )


async def rotate_webhook_secret(request: Request) -> Response:
    """``POST /admin/webhooks/secret``: replace the key that signs the caller's webhooks.

    For ``keep`` seconds, a field of the body, webhooks are also signed with the old key.
    """
    caller = await requests.caller(request, Scope.ADMIN)
    given = await requests.parse(request, WebhookSecretRequest)
    keep = KEEP if given.keep is None else given.keep
    key, now = sender.new_key(), time.time()
    await services_of(request).store.add_webhook_key(caller.owner, key, now, keep)
    return responses.json(
        NewWebhookSecretResponse(key=key, old_keys_until=serializers.timestamp(now + keep)), 201
    )


ROUTES: Final = (
    Route("/admin/config", get_config, methods=["GET"]),
    Route("/admin/machine", get_machine, methods=["GET"]),
    Route("/admin/webhooks/secret", rotate_webhook_secret, methods=["POST"]),
)
