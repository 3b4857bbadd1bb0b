"""The objects and settings that all parts of the engine use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from appliance.cluster.base import Cluster
from appliance.config import ClusterConfig, LimitsConfig
from appliance.domain.access import Policy
from appliance.domain.budgets import Budgets
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.prediction import Prediction
from appliance.domain.token import RunTokens
from appliance.gateway.catalogue.catalogue import Catalogue
from appliance.gateway.engine.devices import Devices
from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.inputs import Inputs
from appliance.scheduler import Event, Scheduler
from appliance.store import Store


class Dependencies(msgspec.Struct, kw_only=True):
    """The objects and settings of the engine. A reload of models.yaml replaces ``limits`` and ``policy``."""

    limits: LimitsConfig
    policy: Policy = msgspec.field(default_factory=Policy)
    budgets: Budgets = msgspec.field(default_factory=Budgets)
    catalogue: Catalogue
    store: Store
    cluster: Cluster
    scheduler: Scheduler
    home: Path  # the data folder
    devices: Devices
    cluster_config: ClusterConfig | None = None  # ``cluster`` of models.yaml
    files: FileStore
    inputs: Inputs
    run_tokens: RunTokens
    observe: Callable[[Prediction], None]  # called with each new record, after its status is stored
    on_event: Callable[[Event], None]  # called with each event of the scheduler's event log
    on_engine_metrics: Callable[[str, EngineMetrics], None]  # called with a loaded model and its metrics
    finalize: Callable[[Prediction], Awaitable[Prediction]]  # makes a version of a succeeded training
