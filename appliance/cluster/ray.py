"""Runner replicas as Ray Serve deployments, one application each.

Models are loaded and unloaded over Serve handles; jobs and events go through ``worker.data_socket``.

Replicas can load any model. They are named ``runner-<n>``, and ``runner-<node>-<n>`` on other nodes of a
cluster. ``replicas`` keeps a spare on each machine.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from ray import serve
from ray.serve.schema import ApplicationStatus

from appliance.cluster import node_spec
from appliance.cluster.base import AdoptedModel, NodeConnection, NodeFolders, PartState
from appliance.cluster.event_streams import events_of
from appliance.cluster.node_files import Folders
from appliance.cluster.parts import FoundPart, Parts, links_of_complete_load
from appliance.cluster.replicas import (
    REPLICA_ERRORS,
    RUNNER,
    Link,
    Machine,
    ReplicaPool,
    delete,
    raise_if_cancelled,
)
from appliance.cluster.runner_replica import Outcome
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import ApplianceError, LoadFailed, NodeLost, WorkerLost
from appliance.domain.prediction import Emitted, Job
from appliance.runners.base import LoadSpec, Part
from appliance.worker import handle as worker_handle
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.replica import ReplicaStats

_log = logging.getLogger(__name__)

_outcome_decoder: Final = msgspec.msgpack.Decoder(Outcome)
_stats_decoder: Final = msgspec.msgpack.Decoder(ReplicaStats)


class RayCluster:
    """Runs models in replicas of Ray Serve. All methods must be called on the gateway's event loop."""

    def __init__(
        self,
        zygote_socket: Path,
        run_dir: Path,
        *,
        node: str = "",
        address: str = "",
        outputs: Path | None = None,
        runs_models: bool = True,
        ports: range = range(20000, 20100),
    ) -> None:
        """``run_dir`` has the logs and pid files of worker processes.

        In a cluster, ``node`` is the name of this machine, ``address`` its IP address, and ``outputs`` its
        folder for output files, which has a folder for each prediction. ``runs_models`` is false if only the
        other nodes have devices. ``ports`` are TCP ports on which the parts of a model on several machines
        find each other.
        """
        self._zygote_socket = zygote_socket
        self._run_dir = run_dir
        self._outputs = outputs
        self._node = node
        self._links: dict[str, Link] = {}  # by model; of a model on several machines: that of its leader
        self._parts: dict[str, Parts] = {}  # by model on several machines
        self._ports, self._port_count = itertools.cycle(ports), len(ports)
        self._numbers: dict[str, int] = {}  # by node: the number of its next replica
        self._adopted = False
        own = [Machine(node, zygote_socket, run_dir, address=address)] if runs_models else []
        self._pools = {machine.name: self._new_pool(machine) for machine in own}  # by node
        #: By model and node: its weights on this node, by path here.
        self._copied: dict[str, dict[str, dict[str, str]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def _new_pool(self, machine: Machine) -> ReplicaPool:
        return ReplicaPool(machine, partial(self._next_name, machine.name))

    def _next_name(self, node: str) -> str:
        """Return the name of a new replica on a node. No replica has had it before."""
        number = self._numbers.get(node, 0)
        self._numbers[node] = number + 1
        return f"{RUNNER}{number}" if node == self._node else f"{RUNNER}{node}-{number}"

    # -- nodes -------------------------------------------------------------------------------------------

    def add_node(self, name: str, folders: NodeFolders, connection: NodeConnection, address: str) -> None:
        assert self._outputs is not None, "only clusters have further nodes"
        machine = Machine(
            name,
            folders.run_dir / self._zygote_socket.name,
            folders.run_dir,
            address=address,
            connection=connection,
            files=Folders(
                self._run_dir / "inputs", self._outputs, folders.run_dir / "inputs", folders.outputs
            ),
            cache=folders.cache,
            used_weights=self._used_weights,
        )
        self._pools[name] = self._new_pool(machine)
        # The agent of a node that joins has already deleted all files of earlier predictions. A deletion
        # from here could also delete files of the first new predictions.
        if self._adopted:
            self._pools[name].keep_spare()

    def remove_node(self, name: str, reason: str) -> None:
        pool = self._pools.pop(name)
        if pool.machine.lost is not None:
            pool.machine.lost.set_result(reason)
        self._spawn(pool.delete_all())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def adopt(self) -> list[AdoptedModel]:
        """Return the loaded models of a previous gateway.

        Also end its unfinished loads, and start the first spare replicas.
        """
        applications = (await asyncio.to_thread(serve.status)).applications
        found = {name: each.status for name, each in applications.items() if name.startswith(RUNNER)}
        self._number_after(found)
        adopted = []
        parts: dict[str, list[FoundPart]] = {}  # by model
        for name in [each for each, status in found.items() if status is not ApplicationStatus.DELETING]:
            pool = self._pools.get(_node_of_replica(name) or self._node)
            if pool is None:
                _log.warning("runner replica %s is on a node that has left, and will be deleted", name)
                await delete(name)
                continue
            try:
                link = pool.link(name, await asyncio.to_thread(serve.get_app_handle, name))
                stats = _stats_decoder.decode(await link.call(link.handle.stats.remote()))
                if stats.spec is None:  # it may be loading a model, whose memory would stay in use
                    await link.call(link.handle.unload.remote())
            except REPLICA_ERRORS as error:
                _log.warning("runner replica %s does not respond and will be deleted: %s", name, error)
                await asyncio.to_thread(serve.delete, name, _blocking=False)
                continue
            if stats.spec is None:
                pool.add_spare(link)
            elif stats.part is not None:
                parts.setdefault(stats.spec.model, []).append(FoundPart(link, stats.part, stats))
            else:
                adopted.append(self._adopt(stats.spec, link, stats))
        adopted += await self._adopt_parts(parts)
        pools = list(self._pools.values())  # nodes may join or be lost during the calls below
        self._adopted = True
        for pool in pools:
            on_it = (link for link in self._links.values() if link.machine is pool.machine)
            await _drop_others(pool.machine, [id for link in on_it for id in link.held])
            if not pool.machine.is_lost:
                pool.keep_spare()
        return adopted

    def _adopt(self, spec: LoadSpec, link: Link, stats: ReplicaStats) -> AdoptedModel:
        self._links[spec.model] = link
        link.held = frozenset(stats.held)
        if link.transfer is not None:
            link.transfer.files.adopt(link.held)
        self._copied.setdefault(spec.model, {})[link.machine.name] = {path: path for path in stats.copies}
        return AdoptedModel(spec, link.held, frozenset(stats.levels), stats.level, stats.changing_sleep_state)

    async def _adopt_parts(self, found: dict[str, list[FoundPart]]) -> list[AdoptedModel]:
        """Adopt the models on several machines of which all parts are ready; unload the parts of others."""
        adopted: list[AdoptedModel] = []
        ending: list[Coroutine[Any, Any, None]] = []
        for model, each in found.items():
            links = links_of_complete_load(each)
            if links is None or model in self._links:
                _log.warning("model %s is unloaded: not all of its parts are loaded and ready", model)
                ending += (self._unload(part.link, model) for part in each)
                continue
            self._parts[model] = self._new_parts(model, each[0].part.port)
            self._parts[model].adopt(links)
            for link, part, stats in each:
                self._copied.setdefault(model, {})[link.machine.name] = {path: path for path in stats.copies}
                if part.index == 0 and stats.spec is not None:
                    adopted.append(self._adopt(stats.spec, link, stats))
        await asyncio.gather(*ending)
        return adopted

    def _number_after(self, names: Iterable[str]) -> None:
        """Let the numbers of new replicas begin after those of existing replicas."""
        for name in names:
            node, number = _node_of_replica(name) or self._node, int(name.rpartition("-")[2])
            self._numbers[node] = max(number + 1, self._numbers.get(node, 0))

    async def answers(self) -> bool:
        """Return whether Serve's controller, which starts the replicas, responds."""
        try:
            await asyncio.to_thread(serve.status)
        except REPLICA_ERRORS as error:
            raise_if_cancelled(error)
            return False
        return True

    async def prepare(self, modules: list[str]) -> None:
        if self._node in self._pools:
            await worker_handle.prepare(self._zygote_socket, modules)
        for name, pool in list(self._pools.items()):
            if (connection := pool.machine.connection) is None:
                continue
            try:
                await connection.prepare(modules)
            except ApplianceError as error:
                _log.warning("modules of new model kinds are not preloaded on node %s: %s", name, error)

    # -- loads -------------------------------------------------------------------------------------------

    def _nodes_of(self, spec: LoadSpec) -> list[str]:
        """Return the nodes that get the model: several if it gets a part on each."""
        return node_spec.nodes_of(spec) if self._node else [""]

    def _pool(self, node: str) -> ReplicaPool:
        pool = self._pools.get(node)
        if pool is None:
            error = NodeLost(f"node {node} is lost")
            error.node = node
            raise error
        return pool

    async def copy_weights(self, spec: LoadSpec) -> int:
        (node,) = self._nodes_of(spec)
        self._copied.get(spec.model, {}).pop(node, None)
        machine = self._pool(node).machine
        if machine.connection is None:
            return 0
        missing = 0

        def progress(_: int, total: int) -> None:
            nonlocal missing
            missing = total

        try:
            paths = node_spec.paths_of(spec)
            copied = await machine.connection.copy_weights(paths, self._used_weights(), progress)
            self._copied.setdefault(spec.model, {})[node] = copied
        except NodeLost:
            raise
        except (ApplianceError, OSError) as error:
            reason = error.detail if isinstance(error, ApplianceError) else str(error)
            text = f"the weights of model {spec.model} could not be copied to node {machine.name}: {reason}"
            raise LoadFailed(text) from error
        return missing

    def _used_weights(self) -> list[str]:
        """Return the paths of copies, on all nodes, that loaded models and their predictions use."""
        found = [
            path for nodes in self._copied.values() for paths in nodes.values() for path in paths.values()
        ]
        for link in self._links.values():
            if link.transfer is not None:
                found += link.transfer.files.used_weights()
        return found

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        nodes = self._nodes_of(spec)
        copied = self._copied.get(spec.model, {})
        if (former := self._parts.get(spec.model)) is not None:
            await former.end()
        self._copied[spec.model] = {node: copied[node] for node in nodes if node in copied}
        if len(nodes) > 1:
            await self._load_parts(spec, nodes)
            return frozenset()  # it cannot sleep
        link = None
        try:
            link = await self._link_for(spec)
            link.begin()
            call = link.handle.load.remote(*self._arguments(spec, link.machine))
            outcome = _outcome_decoder.decode(await link.call(call))
        except NodeLost:
            raise
        except REPLICA_ERRORS as error:
            raise_if_cancelled(error)
            if link is not None:
                await link.until_back()
            raise WorkerLost(f"the runner replica died while loading model {spec.model}: {error}") from error
        if outcome.failure is None:
            return frozenset(outcome.levels)
        if self._links.get(spec.model) is link:  # else the model was unloaded during its load
            await self._give_back(self._links.pop(spec.model))
            self._copied.pop(spec.model, None)
        raise outcome.failure.as_error()

    async def _load_parts(self, spec: LoadSpec, nodes: list[str]) -> None:
        """Load a part of the model on each node; the first one leads."""
        pools = list(map(self._pool, nodes))
        if (former := self._links.pop(spec.model, None)) is not None:  # its worker process has died
            await former.until_ended()
            await self._unload(former, spec.model)
        port, leader = self._unused_port(), pools[0].machine.address

        def arguments(index: int, machine: Machine) -> list[bytes]:
            part = Part(index=index, count=len(nodes), address=machine.address, leader=leader, port=port)
            return self._arguments(spec, machine, part)

        parts = self._parts[spec.model] = self._new_parts(spec.model, port)
        await parts.load(pools, arguments)
        self._links[spec.model] = parts.leader

    def parts(self, model: str) -> list[PartState]:
        parts = self._parts.get(model)
        return [] if parts is None else parts.states

    def _unused_port(self) -> int:
        """Return the next port that no loaded model uses; any port if models use all of them."""
        used = {parts.port for parts in self._parts.values()}
        for port in itertools.islice(self._ports, self._port_count):
            if port not in used:
                return port
        return next(self._ports)

    def _new_parts(self, model: str, port: int) -> Parts:
        return Parts(model, port, give_back=self._give_back, on_end=partial(self._forget, model))

    def _forget(self, model: str) -> None:
        """Forget a model on several machines that is no longer loaded."""
        self._parts.pop(model, None)
        self._links.pop(model, None)
        self._copied.pop(model, None)

    async def _link_for(self, spec: LoadSpec) -> Link:
        """Return the link of the model's replica on the machine of its devices."""
        pool = self._pool(self._nodes_of(spec)[0])
        link = self._links.pop(spec.model, None)
        if link is not None:
            await link.until_ended()
        if link is not None and link.machine is not pool.machine:  # its worker process died on another node
            await self._unload(link, spec.model)
            link = None
        link = self._links[spec.model] = link or await pool.take_spare()
        return link

    def _arguments(self, spec: LoadSpec, machine: Machine, part: Part | None = None) -> list[bytes]:
        """Return the encoded arguments of ``RunnerReplica.load``."""
        if not machine.name:
            return [msgspec.msgpack.encode(spec)]
        local = node_spec.on_node(spec, machine.name, part)
        if machine.cache is None:
            local = node_spec.with_local_devices(local, machine.name)
        else:
            copied = self._copied.get(spec.model, {}).get(machine.name, {})
            local = node_spec.for_node(local, machine.name, machine.cache, copied)
        return [msgspec.msgpack.encode(local), msgspec.msgpack.encode(spec)]

    async def unload(self, model: str) -> None:
        self._copied.pop(model, None)
        if (parts := self._parts.get(model)) is not None:
            await parts.end()
        elif (link := self._links.pop(model, None)) is not None:
            await self._unload(link, model)

    async def _unload(self, link: Link, model: str) -> None:
        try:
            await link.call(link.handle.unload.remote())
        except NodeLost:
            pass  # its worker processes are gone
        except REPLICA_ERRORS as error:
            raise_if_cancelled(error)
            _log.warning("runner replica %s died while unloading model %s: %s", link.name, model, error)
        await self._give_back(link)

    async def _give_back(self, link: Link) -> None:
        if link.transfer is not None:
            link.transfer.files.abandon()
            await link.transfer.files.wait_for_deletions()
        pool = self._pools.get(link.machine.name)
        if pool is not None and pool.machine is link.machine:
            await pool.give_back(link)

    async def sleep(self, model: str, level: int) -> int | None:
        return (await self._change_sleep_state(model, "sleep", level)).left

    async def wake(self, model: str) -> None:
        await self._change_sleep_state(model, "wake")

    async def _change_sleep_state(self, model: str, method: str, *arguments: int) -> Outcome:
        link = self._links.get(model)
        if link is None:
            raise WorkerLost(f"{model} is not loaded")
        try:
            call = getattr(link.handle, method).remote(*arguments)
            outcome = _outcome_decoder.decode(await link.call(call))
        except NodeLost:
            raise
        except REPLICA_ERRORS as error:
            raise_if_cancelled(error)
            raise WorkerLost(f"the runner replica of {model} has died: {error}") from error
        if outcome.failure is not None:
            raise outcome.failure.as_error()
        return outcome

    # -- predictions -------------------------------------------------------------------------------------

    def submit(self, model: str, job: Job) -> None:
        if (link := self._links.get(model)) is not None:
            link.submit(job)

    def cancel(self, model: str, id: str) -> None:
        if (link := self._links.get(model)) is not None:
            link.cancel(id)

    def acknowledge(self, model: str, id: str) -> None:
        if (link := self._links.get(model)) is not None:
            link.acknowledge(id)

    def stored(self, model: str, id: str, attempt: int, n: int) -> None:
        link = self._links.get(model)
        if link is not None and link.transfer is not None:
            link.transfer.files.skip(id, attempt, n)

    def discard(self, model: str, id: str) -> None:
        if (link := self._links.get(model)) is not None:
            if link.transfer is not None:
                link.transfer.files.discard(id)
            link.cancel(id)

    def limit(self, model: str, memory: int) -> None:
        if (parts := self._parts.get(model)) is not None:
            parts.limit(memory)
        elif (link := self._links.get(model)) is not None:
            link.set_limit(memory)

    def events(self, model: str) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
        if (parts := self._parts.get(model)) is not None:
            return parts.events()
        return events_of(model, self._links.get(model))

    async def close(self) -> None:
        for link in self._links.values():
            link.close()
        for parts in list(self._parts.values()):  # a closed one may remove itself
            await parts.close()
        for pool in self._pools.values():
            await pool.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _drop_others(machine: Machine, predictions: list[str]) -> None:
    """Delete the files of all predictions on another node except these (ids)."""
    if machine.connection is None:
        return
    try:
        await machine.connection.drop_others(predictions)
    except ApplianceError as error:
        text = "files of finished predictions could not be deleted on node %s: %s"
        _log.warning(text, machine.name, error.detail)


def _node_of_replica(name: str) -> str:
    """Return the node in the name of a replica; "" for the machine of the gateway."""
    return name.removeprefix(RUNNER).rpartition("-")[0]
