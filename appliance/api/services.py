"""What the routes work with."""

from __future__ import annotations

import msgspec

from appliance.auth import Auth
from appliance.catalogue import Catalogue
from appliance.config import Config
from appliance.egress import Egress
from appliance.engine import Engine
from appliance.files import Files
from appliance.hardware import Device
from appliance.ratelimit import RateLimits
from appliance.retention import Retention
from appliance.store import Store
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
    devices: tuple[Device, ...]
    started_at: float  # Unix seconds

    async def residency(self) -> None:
        """Keep loaded what the deployments want loaded, and only that."""
        wanted = {
            release.version for release in await self.store.registry.deployments() if release.min_instances
        }
        for entry in self.catalogue.entries:
            served = {entry.version, *self.catalogue.adapted(entry.runs_on)}
            self.engine.keep(entry.runs_on, loaded=bool(served & wanted))
