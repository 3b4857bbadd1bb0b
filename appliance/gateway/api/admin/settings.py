"""Routes for the config in effect, the machine and its last hour, and the caller's webhook signing key."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
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
from appliance.machine import Device
from appliance.observability import history
from appliance.protocols import serializers
from appliance.protocols.account_types import NewWebhookSecretResponse
from appliance.protocols.admin_types import (
    DeviceHistory,
    Disk,
    HistoryResponse,
    MachineResponse,
    MainMemory,
    ModelHistory,
    ModelLoad,
)
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
            webhooks=dict(services_of(request).webhooks.outcomes),
        )
    )


async def get_history(request: Request) -> Response:
    """``GET /admin/history``: the last hour, with at most ``points`` samples.

    The history is in memory: it begins at the last start of the gateway.
    """
    services = services_of(request)
    await requests.caller(request, Scope.ADMIN)
    points = requests.limit(request, history.SAMPLES, history.SAMPLES, "points")
    return responses.json(history_response(services.sampler.history, services.devices, points))


def history_response(kept: history.History, devices: Iterable[Device], points: int) -> HistoryResponse:
    samples = kept.samples(points)
    seconds = [each.seconds for each in samples[:1]]
    seconds += [max(each.at - before.at, history.INTERVAL) for before, each in pairwise(samples)]
    models = sorted(
        {name for each in samples for name in (*each.queued, *each.running, *each.tokens, *each.kv_cache)}
    )
    return HistoryResponse(
        seconds=history.SPAN,
        interval=history.INTERVAL,
        at=[serializers.timestamp(each.at) for each in samples],
        devices=[_device_history(device, samples) for device in devices],
        models=[
            ModelHistory(
                name=name,
                queued=[each.queued.get(name, 0) for each in samples],
                running=[each.running.get(name, 0) for each in samples],
                tokens_per_second=[
                    round(each.tokens.get(name, 0.0) / lasted, 3)
                    for each, lasted in zip(samples, seconds, strict=True)
                ],
                kv_cache=[round(each.kv_cache.get(name, 0.0), 4) for each in samples]
                if any(name in each.kv_cache for each in samples)
                else None,
            )
            for name in models
        ],
        memory=machine.main_memory(),
        available=[each.available for each in samples],
        loads=[
            ModelLoad(at=serializers.timestamp(each.at), model=each.model, seconds=each.seconds)
            for each in kept.loads()
        ],
    )


def _device_history(device: Device, samples: Sequence[history.Sample]) -> DeviceHistory:
    reserved = [each.reserved.get(device.name, {}) for each in samples]
    models = sorted({name for each in reserved for name in each})
    return DeviceHistory(
        name=device.name,
        memory=device.memory,
        is_main_memory=device.is_main_memory,
        reserved={name: [each.get(name, 0) for each in reserved] for name in models},
        foreign=[each.foreign.get(device.name, 0) for each in samples],
        utilisation=_measured([each.utilisation for each in samples], device.name),
        power=_measured([each.power for each in samples], device.name),
        temperature=_measured([each.temperature for each in samples], device.name),
    )


def _measured(samples: Sequence[dict[str, float]], device: str) -> list[float | None] | None:
    values = [each.get(device) for each in samples]
    return values if any(each is not None for each in values) else None


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
    Route("/admin/history", get_history, methods=["GET"]),
    Route("/admin/webhooks/secret", rotate_webhook_secret, methods=["POST"]),
)
