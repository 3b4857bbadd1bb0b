"""What the routes work with."""

from __future__ import annotations

import msgspec

from appliance.auth import Auth
from appliance.catalogue import Catalogue
from appliance.cluster.base import Cluster
from appliance.config import Config
from appliance.egress import Egress
from appliance.engine import Engine
from appliance.files import Files
from appliance.hardware import Device
from appliance.metrics import Metrics
from appliance.pushing import Pushes
from appliance.ratelimit import RateLimits
from appliance.reload import Reload
from appliance.retention import Retention
from appliance.storage import Storage
from appliance.store import Store
from appliance.tracing import Tracing
from appliance.training import Trainings
from appliance.webhooks import Webhooks


class Services(msgspec.Struct, kw_only=True):
    """Every part of a running gateway that a route may need."""

    config: Config  # in force; only `configure` replaces it
    catalogue: Catalogue
    store: Store
    engine: Engine
    auth: Auth
    rate_limits: RateLimits
    egress: Egress
    webhooks: Webhooks
    retention: Retention
    files: Files
    trainings: Trainings
    pushes: Pushes
    metrics: Metrics
    tracing: Tracing | None
    cluster: Cluster
    storage: Storage
    reload: Reload
    devices: tuple[Device, ...]
    started_at: float  # Unix seconds

    def configure(self, config: Config) -> None:
        """Go by this config from now on, in everything but its models, which are ``Reload``'s part."""
        limits = config.limits
        self.config = config
        self.engine.limit(limits)
        self.rate_limits.limit(requests=limits.requests_per_minute, predictions=limits.predictions_per_minute)
        self.egress.allow(config.egress.allow)
        self.files.config = config.files
        self.retention.change(config.retention.predictions, config.retention.outputs)
