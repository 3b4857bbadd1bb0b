"""Runner replicas as Ray Serve deployments, one application each.

Models are loaded and unloaded over Serve handles; jobs and events go through ``worker.data_socket``.

Replicas are named ``runner-<n>`` and can load any model. One spare replica is always ready, so a cold start
does not wait for a new Ray process. When a model is unloaded, its replica becomes the spare, or is deleted if
there is a spare already.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from appliance.cluster.base import AdoptedModel, await_answer
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import LoadFailed, SleepFailed, WorkerLost
from appliance.domain.prediction import Emitted, Job
from appliance.observability import logs
from appliance.runners.base import LoadSpec
from appliance.worker import data_socket
from appliance.worker import handle as worker_handle
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.protocol import Commands, Failure, PeakMemory, StreamEnd
from appliance.worker.replica import LoadReport, Replica, ReplicaStats, worker_socket

_log = logging.getLogger(__name__)

T = TypeVar("T")
RUNNER: Final = "runner-"
#: Errors of a call to a replica that has died or cannot be reached. Not all errors of gRPC are Ray errors.
_GONE: Final = (RayError, RayServeException, ConnectionError, RuntimeError, asyncio.CancelledError)


#: Seconds between acknowledgements. Events reach the replica later than the gateway, by much less than this.
_ACKNOWLEDGE_INTERVAL: Final = 0.2


class Outcome(msgspec.Struct, frozen=True):
    """The encoded result of a call. Errors are sent as data, because Ray changes exceptions."""

    failure: Failure | None = None
    levels: list[int] = []  # sleep levels that a loaded model supports
    left: int | None = None  # bytes of each device that a sleeping model still holds; None if unknown


_outcome_decoder = msgspec.msgpack.Decoder(Outcome)
_stats_decoder = msgspec.msgpack.Decoder(ReplicaStats)


class RunnerReplica:
    """The Serve deployment of ``Replica``. Arguments and results are encoded; most results are ``Outcome``.

    The constructor does nothing that can fail, because Serve would retry it without reporting the error.
    """

    def __init__(self, name: str, zygote_socket: str, run_dir: str) -> None:
        logs.configure()
        self._replica = Replica(name, zygote_socket, run_dir)
        self._data_socket = data_socket_path(Path(run_dir), name)
        self._server: asyncio.AbstractServer | None = None

    async def load(self, spec: bytes) -> bytes:
        loading = self._load(msgspec.msgpack.decode(spec, type=LoadSpec))
        return await _outcome(loading, lambda report: Outcome(levels=report.levels))

    async def _load(self, spec: LoadSpec) -> LoadReport:
        if self._server is None:
            try:
                self._server = await data_socket.listen(self._replica, self._data_socket)
            except OSError as error:
                raise LoadFailed(f"cannot create the socket {self._data_socket}: {error.strerror}") from error
        return await self._replica.load(spec)

    async def sleep(self, level: int) -> bytes:
        return await _outcome(self._replica.sleep(level), lambda left: Outcome(left=left))

    async def wake(self) -> bytes:
        return await _outcome(self._replica.wake(), lambda _: Outcome())

    async def unload(self) -> None:
        await self._replica.unload()

    async def stats(self) -> bytes:
        """Return an encoded ``ReplicaStats``."""
        return msgspec.msgpack.encode(await self._replica.stats())


async def _outcome(work: Awaitable[T], success: Callable[[T], Outcome]) -> bytes:
    """Await ``work`` and return its encoded outcome, a success or a failure."""
    try:
        outcome = success(await work)
    except (LoadFailed, SleepFailed, WorkerLost) as error:
        outcome = Outcome(Failure.of(error))
    return msgspec.msgpack.encode(outcome)


class _Link:
    """A replica's Serve handle, and the commands that wait to be sent to its data socket."""

    def __init__(self, name: str, handle: DeploymentHandle[Any]) -> None:
        self.name = name
        self.handle = handle
        self.connection: data_socket.DataConnection | None = None
        self.held: frozenset[str] = frozenset()  # ids of predictions that an earlier gateway sent
        self.waiting = Commands()
        self._acknowledged: list[str] = []  # in this interval
        self._acknowledged_before: list[str] = []  # in the last interval
        self._flushing: asyncio.Handle | None = None

    def send_soon(self) -> None:
        """Send the waiting commands in the next iteration of the event loop, or once connected."""
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self.flush)

    def acknowledge(self, id: str) -> None:
        """Send the acknowledgement with others, after the replica has got the events that it concerns."""
        if not self._acknowledged and not self._acknowledged_before:
            asyncio.get_running_loop().call_later(_ACKNOWLEDGE_INTERVAL, self._acknowledge)
        self._acknowledged.append(id)

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


def data_socket_path(run_dir: Path, name: str) -> Path:
    """Return the path of the data socket of the replica with this name."""
    return run_dir / f"{name}.sock"


class RayCluster:
    """Runs models in replicas of Ray Serve. All methods must be called on the gateway's event loop."""

    def __init__(self, zygote_socket: Path, run_dir: Path) -> None:
        """``run_dir`` has the logs and pid files of worker processes."""
        self._zygote_socket = zygote_socket
        self._run_dir = run_dir
        self._links: dict[str, _Link] = {}  # by model
        self._spares: list[_Link] = []
        self._numbers = itertools.count()
        self._spare_wanted: asyncio.Task[None] | None = None

    async def adopt(self) -> list[AdoptedModel]:
        """Return the loaded models of an earlier gateway, and start the first spare replica."""
        applications = (await asyncio.to_thread(serve.status)).applications
        names = [name for name in applications if name.startswith(RUNNER)]
        used = (int(name.removeprefix(RUNNER)) for name in names)
        self._numbers = itertools.count(max(used, default=-1) + 1)
        adopted = []
        for name in names:
            link = _Link(name, _tuned(await asyncio.to_thread(serve.get_app_handle, name)))
            try:
                stats = _stats_decoder.decode(await link.handle.stats.remote())
            except _GONE as error:
                _log.warning("runner replica %s does not respond and will be deleted: %s", name, error)
                await asyncio.to_thread(serve.delete, name, _blocking=False)
                continue
            if stats.spec is None:
                self._spares.append(link)
            else:
                self._links[stats.spec.model] = link
                link.held = frozenset(stats.held)
                held, levels = frozenset(stats.held), frozenset(stats.levels)
                adopted.append(
                    AdoptedModel(stats.spec, held, levels, stats.level, stats.changing_sleep_state)
                )
        self._keep_spare()
        return adopted

    async def answers(self) -> bool:
        """Return whether Serve's controller, which starts the replicas, responds."""
        try:
            await asyncio.to_thread(serve.status)
        except _GONE as error:
            _raise_if_cancelled(error)
            return False
        return True

    async def prepare(self, modules: list[str]) -> None:
        await worker_handle.prepare(self._zygote_socket, modules)

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        try:
            link = self._links.pop(spec.model, None) or await self._take_spare()
            self._links[spec.model] = link
            link.waiting = Commands()  # the old ones are for the model that the replica had before
            outcome = _outcome_decoder.decode(await link.handle.load.remote(msgspec.msgpack.encode(spec)))
        except _GONE as error:
            _raise_if_cancelled(error)
            raise WorkerLost(f"the runner replica died while loading model {spec.model}: {error}") from error
        if outcome.failure is None:
            return frozenset(outcome.levels)
        del self._links[spec.model]
        await self._give_back(link)
        raise outcome.failure.as_error()

    async def unload(self, model: str) -> None:
        link = self._links.pop(model, None)
        if link is None:
            return
        try:
            await link.handle.unload.remote()
        except _GONE as error:
            _raise_if_cancelled(error)
            _log.warning("runner replica %s died while unloading model %s: %s", link.name, model, error)
        await self._give_back(link)

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
            outcome = _outcome_decoder.decode(await call)
        except _GONE as error:
            _raise_if_cancelled(error)
            raise WorkerLost(f"the runner replica of {model} has died: {error}") from error
        if outcome.failure is not None:
            raise outcome.failure.as_error()
        return outcome

    def submit(self, model: str, job: Job) -> None:
        if (link := self._links.get(model)) is not None:
            link.waiting.jobs.append(job)
            link.send_soon()

    def cancel(self, model: str, id: str) -> None:
        if (link := self._links.get(model)) is not None:
            link.waiting.cancels.append(id)
            link.send_soon()

    def acknowledge(self, model: str, id: str) -> None:
        if (link := self._links.get(model)) is not None:
            link.acknowledge(id)

    def limit(self, model: str, memory: int) -> None:
        if (link := self._links.get(model)) is not None:
            link.waiting.limit = memory
            link.send_soon()

    async def events(self, model: str) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
        link = self._links.get(model)
        if link is None:
            raise WorkerLost(f"{model} is not loaded")
        paths = data_socket_path(self._run_dir, link.name), worker_socket(self._run_dir, link.name)
        try:
            connection = await data_socket.connect(*paths, link.held)
        except OSError as error:
            raise WorkerLost(f"the runner replica of {model} has died: {error}") from error
        link.connection = connection
        link.flush()
        try:
            async for message in connection.messages():
                match message:
                    case list() | EngineMetrics():
                        yield message
                    case PeakMemory(usage):
                        yield usage
                    case StreamEnd(None):
                        return
                    case StreamEnd(Failure() as failure):
                        raise failure.as_error()
            raise WorkerLost(f"the runner replica of {model} has died: it closed its socket")
        finally:
            connection.close()
            if link.connection is connection:
                link.connection = None

    async def close(self) -> None:
        for link in self._links.values():
            link.close()
        if self._spare_wanted is not None:
            self._spare_wanted.cancel()
            await asyncio.gather(self._spare_wanted, return_exceptions=True)

    async def _give_back(self, link: _Link) -> None:
        if self._spares:
            try:
                await asyncio.to_thread(serve.delete, link.name, _blocking=False)
                data_socket_path(self._run_dir, link.name).unlink(missing_ok=True)
            except _GONE as error:  # the next gateway finds the replica and uses it as a spare
                _raise_if_cancelled(error)
                _log.warning("runner replica %s could not be deleted: %s", link.name, error)
        else:
            self._spares.append(_Link(link.name, link.handle))

    async def _take_spare(self) -> _Link:
        """Return a spare replica; if there is none, wait until a new replica is started."""
        while not self._spares:
            self._keep_spare()
            if self._spare_wanted is not None:
                await asyncio.shield(self._spare_wanted)
        link = self._spares.pop()
        self._keep_spare()
        return link

    def _keep_spare(self) -> None:
        if not self._spares and (self._spare_wanted is None or self._spare_wanted.done()):
            self._spare_wanted = asyncio.get_running_loop().create_task(self._start_spare())
            self._spare_wanted.add_done_callback(_log_failure)

    async def _start_spare(self) -> None:
        name = f"{RUNNER}{next(self._numbers)}"
        deployment = serve.deployment(
            RunnerReplica,
            name="runner",
            num_replicas=1,
            max_ongoing_requests=1_000_000,  # the scheduler limits predictions, so Serve must not queue calls
            health_check_period_s=1.0,  # the time until a killed replica is replaced
            health_check_timeout_s=30.0,
            graceful_shutdown_wait_loop_s=0.05,
            graceful_shutdown_timeout_s=2.0,  # the engine drains before; only the stream of events is left
            ray_actor_options={"num_cpus": 0},
        )
        application = deployment.bind(name, str(self._zygote_socket), str(self._run_dir))
        handles = await asyncio.to_thread(
            serve.run_many,
            [serve.RunTarget(application, name=name, route_prefix=None)],
            wait_for_applications_running=False,
            wait_for_ingress_deployment_creation=False,
        )
        link = _Link(name, _tuned(handles[0]))
        await await_answer(
            link.handle.stats.remote(), name
        )  # it has started, and the router of this loop knows it
        self._spares.append(link)


def _log_failure(starting: asyncio.Task[None]) -> None:
    if not starting.cancelled() and (error := starting.exception()) is not None:
        _log.error("no spare runner replica could be started, the next load will try again: %s", error)


def _tuned(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """Return the handle with calls over gRPC, which take less than half the time of Ray actor calls."""
    return handle.options(_by_reference=False)


def _raise_if_cancelled(error: BaseException) -> None:
    """Raise ``error`` if this task was cancelled. Serve also cancels the calls to a dead replica."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
