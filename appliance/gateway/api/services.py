"""The services of a running gateway, which the routes use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request

from appliance.cluster.base import Cluster
from appliance.config import Config, redact
from appliance.domain.audit import difference
from appliance.gateway.api.auth import Auth
from appliance.gateway.api.rate_limit import RateLimits
from appliance.gateway.catalogue.builds import ProjectBuilds
from appliance.gateway.catalogue.catalogue import Catalogue
from appliance.gateway.catalogue.trainings import Trainings
from appliance.gateway.engine import Engine
from appliance.gateway.engine.additions import Additions
from appliance.gateway.engine.devices import Devices
from appliance.gateway.engine.erasures import Erasures
from appliance.gateway.engine.reload import Reload
from appliance.gateway.engine.sampler import Sampler
from appliance.gateway.files.fetch_guard import FetchGuard
from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.prediction_retention import Retention
from appliance.gateway.sign_on import SignOn
from appliance.gateway.webhooks.sender import Webhooks
from appliance.machine.disk import Storage
from appliance.observability.audit_log import AuditLog
from appliance.observability.metrics import Metrics
from appliance.observability.tracing import Tracing
from appliance.store import Store

if TYPE_CHECKING:  # imported only by the head of a cluster
    from appliance.nodes.registry import NodeRegistry


class Services(msgspec.Struct, kw_only=True):
    """The services of a running gateway."""

    config: Config  # in effect; only `configure` replaces it
    catalogue: Catalogue
    store: Store
    audit: AuditLog
    engine: Engine
    auth: Auth
    sign_on: SignOn
    rate_limits: RateLimits
    fetch_guard: FetchGuard
    webhooks: Webhooks
    retention: Retention
    erasures: Erasures
    files: FileStore
    trainings: Trainings
    builds: ProjectBuilds
    metrics: Metrics
    sampler: Sampler
    tracing: Tracing | None
    cluster: Cluster
    storage: Storage
    reload: Reload
    additions: Additions
    devices: Devices
    started_at: float  # Unix seconds
    nodes: NodeRegistry | None = None  # None without a cluster

    def configure(self, config: Config) -> None:
        """Put ``config`` into effect, except its models, which ``Reload`` changes."""
        limits = config.limits
        before, after = difference(redact(self.config), redact(config))
        if before or after:
            self.audit.record_config_change(before, after)
        self.audit.change(config.audit)
        self.config = config
        policy = config.access_policy  # one for all: groups that an identity provider names are added to it
        self.auth.apply(policy, config.sign_on)
        self.sign_on.apply(config)
        self.engine.limit(limits, policy)
        self.engine.budgets.configure(
            config.budgets, policy, config.prices.per_second, config.prices.currency
        )
        self.rate_limits.limit(requests=limits.requests_per_minute, predictions=limits.predictions_per_minute)
        self.fetch_guard.allow(config.egress.allow)
        self.files.config = config.files
        self.retention.change(config.retention_rules(policy), config.retention.outputs)


def services_of(request: Request) -> Services:
    services: Services = request.app.services
    return services
