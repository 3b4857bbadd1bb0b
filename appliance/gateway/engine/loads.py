"""Loads models as the scheduler has decided."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from appliance import weights
from appliance.builds import environments
from appliance.cluster import node_spec
from appliance.cluster.base import AdoptedModel
from appliance.domain.errors import LoadFailed, NodeLost, OutOfMemory, WorkerLost
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.gateway.engine.dependencies import Dependencies
from appliance.gateway.engine.memory_profiles import MemoryProfiles
from appliance.machine import disk, joint_sku
from appliance.protocols.admin_types import ModelPart
from appliance.runners.base import LoadSpec
from appliance.scheduler import Load, Residency, SleepLevel
from appliance.store import RETRY_STORE

_log = logging.getLogger(__name__)

ATTEMPTS: Final = 3  # loads in a row that may lose their worker process before the load fails


class Ready(NamedTuple):
    """The model is loaded; ``levels`` are the sleep levels that its worker process supports."""

    levels: frozenset[SleepLevel]


class Retry(NamedTuple):
    """The load did not succeed and is tried again; predictions continue to wait."""

    reason: str


class Failed(NamedTuple):
    """The model could not be loaded; predictions that wait for it fail."""

    reason: str


class Loads:
    """Loads models and remembers their options. The caller reports the results to the scheduler."""

    def __init__(self, dependencies: Dependencies, memory_profiles: MemoryProfiles) -> None:
        self._dependencies = dependencies
        self._catalogue = dependencies.catalogue
        self._cluster = dependencies.cluster
        self._scheduler = dependencies.scheduler
        self._memory_profiles = memory_profiles
        self._devices = dependencies.devices
        self._options: dict[str, dict[str, Any]] = {}  # by instance: the options of its last load
        self._lost: dict[str, int] = {}  # by instance: loads in a row that lost their worker process
        self._moved: set[str] = set()  # instances whose last load failed on a node, so that another is tried
        self._out_of_memory: set[str] = set()  # instances whose last load ran out of memory
        self.copies: dict[str, set[str]] = {}  # by instance: the nodes that its weights were copied to
        self.on_copied: Callable[[str], None] = _ignore  # called with the node after a copy of weights
        self.copying: dict[str, list[str]] = {}  # by instance: the nodes that its weights are copied to now
        self._waiting: dict[str, asyncio.Future[None]] = {}  # by instance: resolved when its load is done

    def ready(self, instance: str) -> asyncio.Future[None]:
        """Return a future that resolves at the end of the instance's next load, or raises ``LoadFailed``."""
        if instance not in self._waiting:
            self._waiting[instance] = asyncio.get_running_loop().create_future()
        return self._waiting[instance]

    def parts(self, instance: str) -> list[ModelPart]:
        """Return the parts of an instance on several machines, the leader first; empty for others."""
        return [ModelPart(part.node, part.state) for part in self._cluster.parts(instance)]

    def resolve(self, instance: str, error: LoadFailed | None = None) -> None:
        """Resolve the future of ``ready``; with ``error`` the load failed."""
        future = self._waiting.pop(instance, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # else asyncio logs the error if no caller awaits the future

    async def load(self, entry: ServedVersion, decided: Load) -> Ready | Retry | Failed:
        outcome = await self._load(entry, decided)
        if not isinstance(outcome, Retry):
            self._lost.pop(entry.runs_on, None)
            self._moved.discard(entry.runs_on)
            self._out_of_memory.discard(entry.runs_on)
        return outcome

    async def _load(self, entry: ServedVersion, decided: Load) -> Ready | Retry | Failed:
        instance, timeout = entry.runs_on, self._dependencies.limits.load_timeout
        leader, copied = self._devices.by_name.get(decided.devices[0]), False
        try:
            for device in decided.devices:
                if device not in self._devices.by_name:
                    raise _node_lost(node_spec.node_of(device), "before the load began")
            spec = self._spec(entry, decided)
            self._options[instance] = spec.options
            await self._copy_weights(spec)
            copied = True
            async with asyncio.timeout(timeout):
                levels = await self._cluster.load(spec)
        except TimeoutError:
            await self._cluster.unload(instance)
            return Failed(f"model {instance} was not ready after {timeout:g} s")
        except OutOfMemory as error:
            return self._after_out_of_memory(instance, error)
        except (LoadFailed, WorkerLost) as error:
            if await self._waited_for_disk(instance):
                return Retry("the disk was full")
            if isinstance(error, NodeLost):
                on_it = (each for each in decided.devices if node_spec.node_of(each) == error.node)
                device = next(on_it, decided.devices[0])
                return await self._after_node_loss(instance, device, error)
            outcome = (
                self._after_loss(instance, error) if isinstance(error, WorkerLost) else Failed(error.detail)
            )
            node = error.node or ("" if leader is None else leader.node)
            return self._elsewhere(instance, node, outcome, copied)
        except Exception as error:  # noqa: BLE001  # any error must end the wait of predictions
            _log.exception("model %s could not be loaded", instance, extra={"model": instance})
            await self._cluster.unload(instance)
            return Failed(f"model {instance} could not be loaded: {error}")
        return Ready(frozenset(map(SleepLevel, levels)))

    async def _copy_weights(self, spec: LoadSpec) -> None:
        """Copy the weights to the nodes of the model's devices, to all of them at once.

        The load timeout does not limit this. If a copy fails, the others are ended.
        """
        others = [node for node in node_spec.nodes_of(spec) if node != self._devices.node]
        if not self._devices.node or not others:
            return
        copies = {asyncio.ensure_future(self._copy_weights_to(node, spec)) for node in others}
        lost = asyncio.ensure_future(self._until_one_is_lost(others))  # its own copy may have ended
        pending = set(copies)
        try:
            while pending:
                done, _ = await asyncio.wait({*pending, lost}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                pending -= done
        finally:
            for task in (*copies, lost):
                task.cancel()
            await asyncio.gather(*copies, lost, return_exceptions=True)

    async def _until_one_is_lost(self, nodes: Sequence[str]) -> None:
        """Raise ``NodeLost`` once one of these nodes is lost."""
        while True:
            for node in nodes:
                if node not in self._devices.nodes:
                    raise _node_lost(node, "during the copy of weights")
            await asyncio.sleep(1.0)

    async def _copy_weights_to(self, node: str, spec: LoadSpec) -> None:
        instance = spec.model
        _log.info("copying the weights of model %s to node %s", instance, node, extra={"model": instance})
        nodes = self.copying.setdefault(instance, [])
        nodes.append(node)
        began = time.monotonic()
        try:
            copied = await self._cluster.copy_weights(node_spec.on_node(spec, node))
        except (LoadFailed, WorkerLost) as error:
            error.node = node
            raise
        finally:
            nodes.remove(node)
            if not nodes:
                self.copying.pop(instance, None)
        self.copies.setdefault(instance, set()).add(node)
        # Of a model on several machines, the slowest copy is the last one, whose time the scheduler keeps.
        self._scheduler.weights_copied(instance, node, copied, time.monotonic() - began)
        self.on_copied(node)

    async def adopt(self, adopted: AdoptedModel) -> bool:
        """Keep a model of an earlier gateway if its version and options are unchanged; else unload it.

        Returns whether the model was kept. A model that was falling asleep or waking is unloaded too.
        """
        spec = adopted.spec
        kept = self._catalogue.would_load(spec) and not adopted.changing_sleep_state
        kept = kept and all(device in self._devices.by_name for device in spec.placement)
        if kept and self._devices.node:
            kept = len(node_spec.nodes_of(spec)) == self._scheduler.demand(spec.model).machines
        if kept and adopted.level is not None:
            kept = self._scheduler.demand(spec.model).sleep_footprint is not None
        if not kept:
            await self._cluster.unload(spec.model)
            return False
        self._scheduler.adopted(
            spec.model,
            spec.placement,
            spec.memory,
            time.monotonic(),
            levels=map(SleepLevel, adopted.levels),
            level=None if adopted.level is None else SleepLevel(adopted.level),
        )
        return True

    def reload_instances(self, model: str) -> None:
        """Call ``reload_model`` for every instance that this gateway has loaded."""
        for instance in self._options:
            if instance.partition("#")[0] == model:
                self.reload_model(instance)

    def reload_model(self, instance: str) -> None:
        """Reload a ready model whose options have changed: it got its first adapter or lost its last one.

        Its running predictions finish first. The scheduler begins the reload at its next decision.
        """
        if self._scheduler.residency(instance) is not Residency.READY:
            return
        loaded_with = self._options.get(instance)
        if loaded_with and loaded_with != self._catalogue.options(self._catalogue.entry_for(instance)):
            self._scheduler.request_unload(instance, "its adapters have changed", time.monotonic())
            self._scheduler.request_load(instance)

    def hardware(self, devices: Sequence[str]) -> str:
        """Return the hardware SKU under which ``devices`` are billed together."""
        return joint_sku(tuple(self._devices.by_name[device].sku for device in devices))

    async def _waited_for_disk(self, instance: str) -> bool:
        """Wait until the disk has free space; return whether that took any waiting.

        Worker processes write pid files, logs and caches, so every load fails while the disk is full.
        """
        waited, home = False, self._dependencies.home
        while await asyncio.to_thread(disk.full, home):
            if not waited:
                text = "model %s cannot be loaded while the disk of %s is full: free some space"
                _log.error(text, instance, home, extra={"model": instance})
            waited = True
            await asyncio.sleep(RETRY_STORE)
        return waited

    def _after_loss(self, instance: str, error: WorkerLost) -> Retry | Failed:
        """Retry a load whose worker process died, because another program may have killed it."""
        self._lost[instance] = self._lost.get(instance, 0) + 1
        if self._lost[instance] >= ATTEMPTS:
            return Failed(error.detail)
        _log_retry(instance, error.detail)
        return Retry(error.detail)

    async def _after_node_loss(self, instance: str, device: str, error: NodeLost) -> Retry | Failed:
        """Retry a load whose node was lost; on another node if the node answers again.

        If no other node is large enough, the load is retried on the same node after some time, and fails at
        last.
        """
        await self._devices.wait_until_reachable_or_lost(device)
        found = self._devices.by_name.get(device)
        if found is not None and not self._scheduler.avoid_node(instance, found.node, time.monotonic()):
            return self._after_loss(instance, error)
        _log_retry(instance, error.detail)
        return Retry(error.detail)

    def _elsewhere(self, instance: str, node: str, outcome: Retry | Failed, copied: bool) -> Retry | Failed:
        """Retry a load that failed on a joined node if another node is large enough.

        A load whose weights could not be copied is retried on all other nodes, since the model is not the
        cause. Another load is retried once: the model may be the cause.
        """
        if isinstance(outcome, Retry) or node == self._devices.node or (copied and instance in self._moved):
            return outcome
        if not self._scheduler.avoid_node(instance, node, time.monotonic()):
            return outcome
        if copied:
            self._moved.add(instance)
        text = "loading model %s on another node, because it could not be loaded on node %s: %s"
        _log.warning(text, instance, node, outcome.reason, extra={"model": instance})
        return Retry(outcome.reason)

    def _after_out_of_memory(self, instance: str, error: OutOfMemory) -> Retry | Failed:
        """Return ``Retry`` if only this load ran out of memory, and the next load gets more memory."""
        verdict = self._memory_profiles.out_of_memory(instance, error)
        if not verdict.grown or instance in self._out_of_memory:
            return Failed(verdict.sentence)
        self._out_of_memory.add(instance)
        _log_retry(instance, verdict.sentence)
        return Retry(error.detail)

    def _spec(self, entry: ServedVersion, decided: Load) -> LoadSpec:
        model, devices, home = entry.model, decided.devices, self._dependencies.home
        # A logical device is the CPU under another name.
        device = ",".join(devices) if self._devices.kinds[devices[0]] == "cuda" else "cpu"
        return LoadSpec(
            model=entry.runs_on,
            version=entry.version,
            kind=entry.kind,
            options=self._catalogue.options(entry),
            weights=None if model.source is None else str(weights.folder(home, model)),
            device=device,
            placement=devices,
            memory=decided.memory,
            limit=self._memory_profiles.limit(entry.runs_on),
            threads=model.threads or min(map(self._devices.threads, devices)),
            concurrency=1 if entry.kind != model.kind else model.options.predictions_at_once,
            cache=str(home / "cache" / entry.kind),
            sleeps=decided.may_sleep,
            paths=tuple(map(str, model.options.paths())),
            python=environments.interpreter(home, model),
        )


def _node_lost(node: str, when: str) -> NodeLost:
    error = NodeLost(f"node {node} was lost {when}")
    error.node = node
    return error


def _ignore(_: str) -> None:
    """Do nothing."""


def _log_retry(instance: str, reason: str) -> None:
    _log.warning("retrying the load of model %s: %s", instance, reason, extra={"model": instance})
