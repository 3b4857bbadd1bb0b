"""The nodes of a cluster, as the engine sees them: nodes that join and are lost.

The models of a lost node are handled as after the death of their worker processes: ``Cluster.remove_node``
ends their event streams and calls with ``NodeLost``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance import machine, weights
from appliance.cluster.base import NodeFolders
from appliance.config import ModelConfig
from appliance.domain.errors import ApplianceError, WeightsError
from appliance.domain.units import readable_bytes
from appliance.gateway.catalogue.demands import capacities
from appliance.gateway.engine.dependencies import Dependencies
from appliance.gateway.engine.loads import Loads
from appliance.gateway.engine.tasks import Tasks
from appliance.machine import Device

if TYPE_CHECKING:  # without a cluster this package is not needed
    from appliance.nodes.client import NodeClient
    from appliance.nodes.messages import NodeFacts

_log = logging.getLogger(__name__)

#: Seconds between two checks whether waiting models fit on no node.
_CHECK_INTERVAL: Final = 1.0


class EngineNodes:
    """Adds and removes the devices of nodes: the ``NodeListener`` of the engine, used on its event loop."""

    def __init__(
        self, dependencies: Dependencies, tasks: Tasks, loads: Loads, decide: Callable[[], None]
    ) -> None:
        self._catalogue = dependencies.catalogue
        self._home = dependencies.home
        self._tasks = tasks
        self._loads = loads
        self._devices = dependencies.devices
        self._cluster_config = dependencies.cluster_config
        self._scheduler = dependencies.scheduler
        self._cluster = dependencies.cluster
        self._decide = decide
        self._clients: dict[str, NodeClient] = {}  # by node that has joined
        loads.on_copied = self._copied
        self._unplaceable: set[str] = set()  # models that were logged, because they fit on no node
        self._checked_at = float("-inf")

    def joined(self, facts: NodeFacts, client: NodeClient) -> None:
        """Add the devices of a node that has joined, so that models are placed there.

        Raises:
            ApplianceError: the node cannot be a part of this cluster; the message says why.
        """
        self._check(facts.name, facts.devices)
        devices = machine.on_node(facts.devices, facts.name)
        try:
            self._scheduler.add_devices(capacities(devices, may_hold_parts=self._may_hold_parts(facts)))
        except ValueError as error:
            raise ApplianceError(
                f"node {facts.name} was lost, and its models are still being removed: try again"
            ) from error
        run_dir = Path(facts.run_dir)
        folders = NodeFolders(run_dir, Path(facts.outputs), run_dir.parent / "cache")
        self._devices.add(facts.name, devices, facts.threads, client.in_use)
        self._cluster.add_node(facts.name, folders, client, facts.host)
        shown = ", ".join(f"{each.name} with {readable_bytes(each.memory)}" for each in devices)
        _log.info("models can be loaded on node %s: %s, %d CPU threads", facts.name, shown, facts.threads)
        self._clients[facts.name] = client
        self._tasks.spawn(self._find_copies(facts.name, client))
        self._decide()

    def _may_hold_parts(self, facts: NodeFacts) -> bool:
        """Return whether models on several machines may use the node; log why not."""
        reason = None if self._cluster_config is None else self._cluster_config.no_parts_reason(facts.host)
        if reason is not None:
            text = (
                "node %s gets no parts of models on several machines: %s: join with an address in this "
                "network (appliance join --address)"
            )
            _log.warning(text, facts.name, reason)
        return self._cluster_config is None or self._cluster_config.in_private_network(facts.host)

    async def _find_copies(self, node: str, client: NodeClient) -> None:
        """Find the weights that a node has from a previous time in the cluster, then measure all weights."""
        await self._check_copies(node, client, list(self._scheduler.models))
        await self._measure_weights()
        self._decide()

    def _copied(self, node: str) -> None:
        """Find out which copies a node had to delete for a new one."""
        if (client := self._clients.get(node)) is not None:
            self._tasks.spawn(self._check_copies(node, client, list(self._loads.copies)))

    async def _check_copies(self, node: str, client: NodeClient, models: list[str]) -> None:
        """Update which of the models have a copy of their weights on the node."""
        for key in models:
            if not self._scheduler.knows(key):
                continue
            model = self._catalogue.entry_for(key).model
            if model.source is None or self._scheduler.demand(key).nodes is not None:
                continue
            paths = [weights.folder(self._home, model), *model.options.paths()]
            try:
                is_there = await client.has_weights(paths)
            except ApplianceError as error:
                _log.debug("the weights of model %s were not looked for on node %s: %s", key, node, error)
                return
            if self._clients.get(node) is not client:
                return
            nodes = self._loads.copies.setdefault(key, set())
            if is_there:
                nodes.add(node)
            elif node in nodes:
                nodes.discard(node)
                self._scheduler.weights_deleted(key, node)

    def weights_changed(self) -> None:
        """Tell the scheduler the sizes of all weights, so that it places models where their weights are."""
        if self._devices.nodes:
            self._tasks.spawn(self._measure_weights())

    async def _measure_weights(self) -> None:
        models = {key: self._catalogue.entry_for(key).model for key in self._scheduler.models}
        sizes = await asyncio.to_thread(
            lambda: {key: _weight_size(self._home, model) for key, model in models.items()}
        )
        for key, size in sizes.items():
            if size and self._scheduler.knows(key):
                places = {self._devices.node, *self._loads.copies.get(key, ())}
                self._scheduler.set_weights(key, size, places)

    def _check(self, name: str, devices: Sequence[Device]) -> None:
        if not self._devices.node:
            raise ApplianceError("this appliance is no cluster: add a section cluster to models.yaml")
        if name == self._devices.node or name in self._devices.nodes:
            raise ApplianceError(f"the cluster has a node {name}: give the new node another name with --name")
        kind, hardware = devices[0].kind if devices else "no devices", self._devices.hardware
        if kind == hardware.kind:
            return
        if hardware.runs_models:
            raise ApplianceError(
                f"node {name} has devices of the kind {kind}, and the head has {hardware.kind}: either all "
                "machines of a cluster need GPUs, or none has any. A head that runs no models needs no GPU: "
                "set hardware.devices to none in its models.yaml"
            )
        used = "machines with GPUs" if hardware.kind == "cuda" else "machines without GPUs"
        raise ApplianceError(
            f"node {name} has devices of the kind {kind}, and this cluster uses {used} (cluster.devices in "
            "models.yaml of the head): let other machines join, or change cluster.devices"
        )

    def lost(self, name: str, reason: str) -> None:
        """Remove a node that cannot be reached; do nothing if it has not joined.

        Predictions without output run again on other nodes; those with output fail and keep it.
        """
        if name not in self._devices.nodes:
            return
        self._clients.pop(name, None)
        for nodes in self._loads.copies.values():
            nodes.discard(name)
        models = self._scheduler.remove_devices(name)
        _log.error("node %s is lost, with %d models: %s", name, len(models), reason)
        self._devices.remove(name)
        self._cluster.remove_node(name, reason)
        self._decide()

    def check_fits(self, model: str) -> None:
        """Check that a machine is large enough for a model with this key of the scheduler.

        If only nodes run models and none has joined, the predictions wait for the first node.

        Raises:
            ModelTooLarge: no machine is large enough.
        """
        if self._devices.hardware.runs_models or self._devices.nodes:
            self._scheduler.check_fits(model)

    def staying(self, name: str) -> dict[str, str]:
        """Return why models are still on a draining node, by model; empty if the node is not draining."""
        return self._scheduler.models_on_node(name).staying

    def log_unplaceable(self, now: float) -> None:
        """Log each waiting model that fits on no node, once until it fits. Checks once a second at most."""
        if not self._devices.node or now < self._checked_at + _CHECK_INTERVAL:
            return
        self._checked_at = now
        found = {each.model: each for each in self._scheduler.unplaceable_models(now)}
        for name in found.keys() - self._unplaceable:
            model = found[name]
            waiting = (
                "1 prediction waits" if model.predictions == 1 else f"{model.predictions} predictions wait"
            )
            _log.warning("%s fits on no node, and %s for it: %s", name, waiting, model.reason)
        self._unplaceable = set(found)

    def draining(self, name: str, draining: bool) -> None:
        """Drain a node: load nothing there, and move its models to other nodes; or undrain it."""
        if draining:
            self._scheduler.drain_node(name)
        else:
            self._scheduler.undrain_node(name)
        self._decide()


def _weight_size(home: Path, model: ModelConfig) -> int:
    """Return the bytes of the model's weights; 0 if it has none, or they cannot be read."""
    if model.source is None:
        return 0
    try:
        return weights.weight_size_of(weights.folder(home, model), model.weight_variant).stored
    except (WeightsError, OSError):  # the files may be deleted meanwhile
        return 0
