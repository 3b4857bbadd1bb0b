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
from appliance.retention import Retention
from appliance.storage import Storage
from appliance.store import Store
from appliance.tracing import Tracing
from appliance.training import Trainings
from appliance.webhooks import Webhooks


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """Every part of a running gateway that a route may need."""

    config: Config
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
    devices: tuple[Device, ...]
    started_at: float  # Unix seconds

    async def residency(self) -> None:
        """Give every model the instances that the deployments of its versions ask for.

        Versions that were trained on a model run on its instances. As many are kept loaded, and used, as the
        most demanding of its deployments says.
        """
        releases = await self.store.registry.deployments()
        for entry in self.catalogue.entries:
            served = {entry.version, *self.catalogue.adapted(entry.runs_on)}
            asked = [release for release in releases if release.version in served]
            low = max((release.min_instances for release in asked), default=0)
            high = max((release.max_instances for release in asked), default=1)
            self.engine.scale(entry, low, max(high, 1))
