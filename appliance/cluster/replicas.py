"""The replicas of one machine: a link to each, and a spare that is always ready.

One spare replica is always ready on each machine, so a cold start does not wait for a new Ray process. When a
model is unloaded, its replica becomes the spare, or is deleted if there is a spare already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from appliance.cluster.base import NodeConnection, await_answer
from appliance.cluster.node_files import Folders, NodeFiles
from appliance.cluster.runner_replica import RunnerReplica, data_socket_path
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import NodeLost
from appliance.domain.prediction import Done, Emitted, Job
from appliance.worker import data_socket
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.protocol import Commands

_log = logging.getLogger(__name__)

T = TypeVar("T")
P = TypeVar("P", bound=asyncio.Protocol)
RUNNER: Final = "runner-"
#: Errors of a call to a replica that has died or is unreachable. Not all errors of gRPC are Ray errors.
REPLICA_ERRORS: Final = (
    RayError,
    RayServeException,
    ConnectionError,
    RuntimeError,
    asyncio.CancelledError,
    NodeLost,
)
#: Seconds between acknowledgements. Events reach the replica later than the gateway, by much less than this.
_ACKNOWLEDGE_INTERVAL: Final = 0.2
#: How often, and every how many seconds, a dead replica on another node is asked whether it is back.
_BACK_CHECKS: Final = 30
_BACK_INTERVAL: Final = 2.0
#: Share of a node's resource that each replica takes. The resource only says where the replica runs.
_SHARE: Final = 0.001


class Machine:
    """This machine, or a node of the cluster, as the place of replicas."""

    def __init__(
        self,
        name: str,
        zygote_socket: Path,
        run_dir: Path,
        *,
        address: str = "",
        connection: NodeConnection | None = None,
        files: Folders | None = None,
        cache: Path | None = None,
        used_weights: Callable[[], list[str]] = list,
    ) -> None:
        """``name`` is "" without a cluster. Other nodes have a ``connection``, ``files`` and a ``cache``.

        ``address`` is its IP address in the cluster.
        ``used_weights`` returns the paths of copied weights on nodes that must not be deleted there.
        ``run_dir`` and ``cache`` are paths on the machine itself. Create other nodes on the event loop.
        """
        self.name = name
        self.zygote_socket = zygote_socket
        self.run_dir = run_dir
        self.address = address
        self.connection = connection
        self.files = files
        self.cache = cache
        self.used_weights = used_weights
        #: Done with the reason once the node is lost; None for this machine.
        self.lost: asyncio.Future[str] | None = None
        if connection is not None:
            self.lost = asyncio.get_running_loop().create_future()

    @property
    def options(self) -> dict[str, Any]:
        """Options of Ray's actors that run on this machine."""
        return {"num_cpus": 0} | ({"resources": {resource(self.name): _SHARE}} if self.name else {})

    @property
    def is_lost(self) -> bool:
        return self.lost is not None and self.lost.done()

    def loss(self) -> NodeLost:
        """Return the error of a lost node."""
        reason = self.lost.result() if self.lost is not None and self.lost.done() else "unknown reason"
        return NodeLost(f"node {self.name} is lost: {reason}")

    async def open_socket(self, path: Path, protocol: Callable[[], P], /) -> tuple[object, P]:
        """Connect to a Unix socket in the run folder of this machine."""
        if self.connection is None:
            return await data_socket.open_unix_socket(path, protocol)
        return await self.connection.open_socket(path.name, protocol)


def resource(node: str) -> str:
    """Return the name of the Ray resource that only this node has."""
    return f"appliance-node-{node}"


class Link:
    """A replica's Serve handle, and the commands that wait to be sent to its data socket."""

    def __init__(self, name: str, handle: DeploymentHandle[Any], machine: Machine) -> None:
        self.name = name
        self.handle = handle
        self.machine = machine
        self.connection: data_socket.DataConnection | None = None
        self.held: frozenset[str] = frozenset()  # ids of predictions that a previous gateway sent
        self.waiting = Commands()
        #: On another node: sent jobs by prediction, and cancels, until the prediction finishes.
        self._unfinished: dict[str, Job] = {}
        self._canceled: set[str] = set()
        self._acknowledged: list[str] = []  # in this interval
        self._acknowledged_before: list[str] = []  # in the last interval
        self._flushing: asyncio.Handle | None = None
        self.transfer: Transfer | None = None
        self._ending: asyncio.Task[None] | None = None
        self.begin()

    def begin(self) -> None:
        """Forget the commands and files of the model that the replica had before."""
        self.waiting = Commands()
        self._unfinished.clear()
        self._canceled.clear()
        if self.transfer is not None:
            self.transfer.files.abandon()
        if self.machine.connection is not None:
            self.transfer = Transfer(self)

    async def call(self, answer: Awaitable[T]) -> T:
        """Return the result of a call of the handle.

        Raises:
            NodeLost: the node of the replica is lost.
        """
        lost = self.machine.lost
        if lost is None:
            return await answer
        waiting = asyncio.ensure_future(_result(answer))
        try:
            either: set[asyncio.Future[Any]] = {waiting, lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                raise self.machine.loss()
            return await waiting
        finally:
            waiting.cancel()

    def end_worker(self) -> None:
        """Begin to end the worker process, because the connection to its node broke."""
        if self._ending is None and not self.machine.is_lost:
            self._ending = asyncio.get_running_loop().create_task(self._end_worker())

    async def _end_worker(self) -> None:
        try:
            await self.call(self.handle.unload.remote())
        except REPLICA_ERRORS as error:
            raise_if_cancelled(error)
            _log.warning("the worker process of runner replica %s may still run: %s", self.name, error)
            return
        if self.transfer is not None:
            await self.transfer.files.events_delivered()
            self.transfer.files.abandon()

    async def until_ended(self) -> None:
        """Wait for the end that ``end_worker`` has begun, if any. Then the replica can be used again."""
        if self._ending is not None:
            await asyncio.shield(self._ending)
            self._ending = None

    async def until_back(self) -> None:
        """Wait until a replica on another node that has died answers again; do nothing on this machine.

        Its node may have died with it, which is noticed later.

        Raises:
            NodeLost: the node of the replica is lost.
        """
        for _ in range(_BACK_CHECKS if self.machine.connection is not None else 0):
            try:
                async with asyncio.timeout(_BACK_INTERVAL):
                    await self.call(self.handle.stats.remote())
                return
            except NodeLost:
                raise
            except REPLICA_ERRORS as error:
                raise_if_cancelled(error)
                await asyncio.sleep(_BACK_INTERVAL)
            except TimeoutError:
                continue

    def submit(self, job: Job) -> None:
        """Send a job, after its input files if the replica is on another node."""
        if self.transfer is None:
            self.send_job(job)
        else:
            self.transfer.files.submit(job)

    def cancel(self, id: str) -> None:
        if self.transfer is None:
            self.send_cancel(id)
        else:
            self.transfer.files.cancel(id)

    def send_job(self, job: Job) -> None:
        if self.transfer is not None:
            self._unfinished[job.id] = job
        self.waiting.jobs.append(job)
        self.send_soon()

    def send_cancel(self, id: str) -> None:
        if id in self._unfinished:
            self._canceled.add(id)
        self.waiting.cancels.append(id)
        self.send_soon()

    def set_limit(self, memory: int) -> None:
        """Send how many bytes of main memory the worker process may use from now on."""
        self.waiting.limit = memory
        self.send_soon()

    def received(self, events: list[Emitted]) -> None:
        """Forget the jobs of predictions whose last event is among ``events``."""
        for emitted in events:
            job = self._unfinished.get(emitted.id)
            if isinstance(emitted.event, Done) and job is not None and job.attempt == emitted.attempt:
                self._forget(emitted.id)

    def _forget(self, id: str) -> None:
        self._unfinished.pop(id, None)
        self._canceled.discard(id)

    def connected(self, connection: data_socket.DataConnection) -> None:
        """Send the waiting commands over a new connection.

        On another node, all unfinished jobs are sent again, because an earlier connection may have broken
        before they arrived. The replica ignores the jobs that it knows.
        """
        self.connection = connection
        if self.transfer is not None:
            self.waiting.jobs = list(self._unfinished.values())
            self.waiting.cancels.extend(self._canceled.difference(self.waiting.cancels))
        self.flush()

    def send_soon(self) -> None:
        """Send the waiting commands in the next iteration of the event loop, or once connected."""
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self.flush)

    def acknowledge(self, id: str) -> None:
        """Send the acknowledgement with others, after the replica has got the events that it concerns."""
        if not self._acknowledged and not self._acknowledged_before:
            asyncio.get_running_loop().call_later(_ACKNOWLEDGE_INTERVAL, self._acknowledge)
        self._acknowledged.append(id)
        self._forget(id)
        if self.transfer is not None:
            self.transfer.files.acknowledged(id)

    def _acknowledge(self) -> None:
        self.waiting.acknowledged.extend(self._acknowledged_before)
        self._acknowledged_before, self._acknowledged = self._acknowledged, []
        if self._acknowledged_before:
            asyncio.get_running_loop().call_later(_ACKNOWLEDGE_INTERVAL, self._acknowledge)
        self.flush()

    def flush(self) -> None:
        self._flushing = None
        if self.connection is not None and self.waiting != Commands():
            waiting, self.waiting = self.waiting, Commands()
            self.connection.send(waiting)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        if self.transfer is not None:
            self.transfer.files.close()


#: What the engine gets of a loaded model. An error ends the stream, and so does None.
Message = list[Emitted] | EngineMetrics | MemoryUsage | Exception | None


class Transfer:
    """The files of a model on another node, and the messages that wait for the engine."""

    def __init__(self, link: Link) -> None:
        machine = link.machine
        assert machine.connection is not None
        assert machine.files is not None
        assert machine.lost is not None
        self._machine = machine
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.files = NodeFiles(
            machine.name,
            machine.connection,
            machine.files,
            machine.lost,
            send=link.send_job,
            cancel=link.send_cancel,
            deliver=self.messages.put_nowait,
            keep_weights=machine.used_weights,
        )

    def end_with_loss(self, _: asyncio.Future[str]) -> None:
        """Let the reader of the messages raise ``NodeLost``."""
        self.messages.put_nowait(self._machine.loss())


class ReplicaPool:
    """The replicas of one machine."""

    def __init__(self, machine: Machine, next_name: Callable[[], str]) -> None:
        """``next_name`` returns the name of a new replica."""
        self.machine = machine
        self._next_name = next_name
        self._spares: list[Link] = []
        self._spare_wanted: asyncio.Task[None] | None = None
        self._deploying: tuple[str, asyncio.Task[Any]] | None = None  # the last new replica
        self.names: set[str] = set()  # of all replicas

    def link(self, name: str, handle: DeploymentHandle[Any]) -> Link:
        """Return a link to a replica of this machine that a previous gateway has started."""
        self.names.add(name)
        return Link(name, tuned(handle), self.machine)

    def add_spare(self, link: Link) -> None:
        self._spares.append(link)

    async def take_spare(self) -> Link:
        """Return a spare replica; if there is none, wait until a new replica is started.

        Raises:
            NodeLost: the node is lost.
        """
        while not self._spares:
            if self.machine.is_lost:
                raise self.machine.loss()
            self.keep_spare()
            if self._spare_wanted is not None:
                await self._started(self._spare_wanted)
        link = self._spares.pop()
        self.keep_spare()
        return link

    async def _started(self, starting: asyncio.Task[None]) -> None:
        lost = self.machine.lost
        if lost is not None:
            either: set[asyncio.Future[Any]] = {starting, lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                return
        await asyncio.shield(starting)

    async def give_back(self, link: Link) -> None:
        """Keep the replica of an unloaded model as the spare, or delete it."""
        if self.machine.is_lost:
            return
        if not self._spares:
            self._spares.append(Link(link.name, link.handle, self.machine))
            return
        try:
            await asyncio.to_thread(serve.delete, link.name, _blocking=False)
            self.names.discard(link.name)
            if self.machine.connection is None:
                data_socket_path(self.machine.run_dir, link.name).unlink(missing_ok=True)
        except REPLICA_ERRORS as error:  # the next gateway finds the replica and uses it as a spare
            raise_if_cancelled(error)
            _log.warning("runner replica %s could not be deleted: %s", link.name, error)

    def keep_spare(self) -> None:
        if not self._spares and (self._spare_wanted is None or self._spare_wanted.done()):
            self._spare_wanted = asyncio.get_running_loop().create_task(self._start_spare())
            self._spare_wanted.add_done_callback(_log_failure)

    async def _start_spare(self) -> None:
        machine = self.machine
        name = self._next_name()
        self.names.add(name)
        deployment = serve.deployment(
            RunnerReplica,
            name="runner",
            num_replicas=1,
            max_ongoing_requests=1_000_000,  # the scheduler limits predictions, so Serve must not queue calls
            health_check_period_s=5.0,  # ± 10 %: until a killed replica is noticed; checks take CPU time
            health_check_timeout_s=30.0,
            graceful_shutdown_wait_loop_s=0.05,
            graceful_shutdown_timeout_s=2.0,  # the engine drains before; only the stream of events is left
            ray_actor_options=machine.options,
        )
        application = deployment.bind(name, str(machine.zygote_socket), str(machine.run_dir))
        deploying = asyncio.get_running_loop().create_task(
            asyncio.to_thread(
                serve.run_many,
                [serve.RunTarget(application, name=name, route_prefix=None)],
                wait_for_applications_running=False,
                wait_for_ingress_deployment_creation=False,
            )
        )
        self._deploying = name, deploying
        handles = await asyncio.shield(deploying)
        link = Link(name, tuned(handles[0]), machine)
        # It has started, and the router of this loop knows it.
        await await_answer(link.call(link.handle.stats.remote()), name)
        self._spares.append(link)

    async def delete_all(self) -> None:
        """Delete the replicas of a lost node, which Serve would start again when the node comes back."""
        await self.close()
        deploying = None if self._deploying is None or self._deploying[1].done() else self._deploying
        for name in sorted(self.names):
            await delete(name)
        if deploying is not None:  # its thread cannot be stopped, and may create the replica after that
            name, created = deploying
            await asyncio.gather(created, return_exceptions=True)
            await delete(name)

    async def close(self) -> None:
        if self._spare_wanted is not None:
            self._spare_wanted.cancel()
            await asyncio.gather(self._spare_wanted, return_exceptions=True)


async def delete(name: str) -> None:
    """Let Serve delete a replica; log a warning if Serve does not answer."""
    try:
        await asyncio.to_thread(serve.delete, name, _blocking=False)
    except REPLICA_ERRORS as error:
        raise_if_cancelled(error)
        _log.warning("runner replica %s could not be deleted: %s", name, error)


def tuned(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """Return the handle with calls over gRPC, which take less than half the time of Ray actor calls."""
    return handle.options(_by_reference=False)


def raise_if_cancelled(error: BaseException) -> None:
    """Raise ``error`` if this task was cancelled. Serve also cancels the calls to a dead replica."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


async def _result(answer: Awaitable[T]) -> T:
    return await answer


def _log_failure(starting: asyncio.Task[None]) -> None:
    if starting.cancelled() or (error := starting.exception()) is None or isinstance(error, NodeLost):
        return
    _log.error("no spare runner replica could be started, the next load will try again: %s", error)
