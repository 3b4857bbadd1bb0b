"""The API over an engine without Ray, and an HTTP client of it, in one process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
from cryptography.fernet import Fernet

from appliance.config import Config
from appliance.domain.retention import RetentionRules
from appliance.gateway.api import create_api
from appliance.gateway.api.auth import Auth
from appliance.gateway.api.rate_limit import RateLimits
from appliance.gateway.api.services import Services
from appliance.gateway.engine.additions import Additions
from appliance.gateway.engine.erasures import Erasures
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.files.prediction_retention import Retention
from appliance.gateway.sign_on import SignOn
from appliance.gateway.webhooks.sender import Webhooks
from appliance.machine.disk import Storage
from appliance.observability.audit_log import AuditLog
from tests.support.appliance_process import PATIENCE
from tests.support.engine_bench import Bench

SECRET = "a secret with spaces"
CONFIG = Config.model_validate(
    {
        "server": {"account": "me", "account_name": "My Company"},
        "limits": {"body": "64KiB"},
        "models": [{"name": "test/echo", "kind": "echo"}],
    }
)


def services_of(bench: Bench, config: Config = CONFIG) -> Services:
    """Return the services of the routes, over the engine of ``bench``."""
    fetch_guard = FetchGuard(())
    reload = bench.reload(config)
    auth = Auth(
        bench.store,
        bench.store.users,
        bench.run_tokens,
        bench.engine.running,
        config.access_policy,
        config.sign_on,
        bench.engine.budgets.groups_changed,
    )
    return Services(
        config=config,
        catalogue=bench.catalogue,
        store=bench.store,
        audit=AuditLog(bench.store, config.audit),
        engine=bench.engine,
        auth=auth,
        sign_on=SignOn(bench.store.users, config, Fernet.generate_key()),
        rate_limits=RateLimits(requests=None, predictions=None),
        fetch_guard=fetch_guard,
        webhooks=Webhooks(bench.store, fetch_guard, config.server.account),
        retention=Retention(bench.store, bench.files, RetentionRules()),
        erasures=Erasures(
            store=bench.store,
            engine=bench.engine,
            catalogue=bench.catalogue,
            files=bench.files,
            trainings=bench.trainings,
            builds=bench.builds,
            forget_token=auth.forget,
        ),
        files=bench.files,
        trainings=bench.trainings,
        builds=bench.builds,
        metrics=bench.metrics,
        sampler=bench.sampler,
        tracing=bench.tracing,
        cluster=bench.cluster,
        storage=Storage(bench.folder),
        devices=bench.current_devices,
        reload=reload,
        additions=Additions(bench.folder, reload),
        started_at=time.time(),
    )


class Api(httpx.AsyncClient):
    """A client of the API with a token."""

    def __init__(self, services: Services, secret: str | None = SECRET) -> None:
        self.services = services
        super().__init__(
            transport=httpx.ASGITransport(create_api(services)),
            base_url="http://models.example.org:8000",
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
        )

    async def create(self, headers: dict[str, str] | None = None, **input: Any) -> dict[str, Any]:
        reply = await self.post("/v1/models/test/echo/predictions", json={"input": input}, headers=headers)
        assert reply.status_code in {201, 202}, reply.text
        record: dict[str, Any] = reply.json()
        return record

    async def ended(self, record: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            found: dict[str, Any] = (await self.get(f"/v1/predictions/{record['id']}")).json()
            if found["status"] not in {"starting", "processing"}:
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.005)

    async def until_output(self, record: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while not (found := (await self.get(f"/v1/predictions/{record['id']}")).json()).get("output"):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.005)
        return dict(found)
