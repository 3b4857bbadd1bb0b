"""Runner replicas as Ray Serve deployments, one application each, called over Serve handles.

Replicas are named ``runner-<n>`` and can load any model. There is always one spare replica, so that a cold
start need not wait until Ray has started a process. When a model is unloaded, its replica becomes the spare,
or is deleted if there is one already.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from appliance.cluster.base import AdoptedModel, await_answer
from appliance.domain import file
from appliance.domain.errors import LoadFailed, OutOfMemory, SleepFailed, WorkerLost
from appliance.domain.prediction import Emitted, Job
from appliance.observability import logs
from appliance.runners.base import LoadSpec
from appliance.worker import handle as worker_handle
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.replica import Replica, ReplicaStats

_log = logging.getLogger(__name__)

T = TypeVar("T")
RUNNER: Final = "runner-"
#: Errors of a call to a replica that has died or cannot be reached. If the connection breaks in the middle of
#: a stream, gRPC raises errors that are not Ray errors.
_GONE: Final = (RayError, RayServeException, ConnectionError, RuntimeError, asyncio.CancelledError)


class Exchange(msgspec.Struct):
    """All messages that wait for one model; they are sent in one call."""

    jobs: list[Job] = []
    cancels: list[str] = []
    acknowledged: list[str] = []
    limit: int | None = None  # new limit of the worker process, in bytes of main memory


_ERRORS: Final[dict[str, type[LoadFailed | WorkerLost | SleepFailed]]] = {
    "oom": OutOfMemory,  # before its base class
    "lost": WorkerLost,
    "sleep_failed": SleepFailed,
    "failed": LoadFailed,
}


class Outcome(msgspec.Struct, frozen=True):
    """The result of a call, or why events end. Errors are sent as data, because Ray changes exceptions."""

    error: str | None = None
    kind: str = ""  # key of ``_ERRORS``
    took: int | None = None  # bytes that a worker process used when it ran out of memory
    levels: list[int] = []  # sleep levels that a loaded model supports
    left: int | None = None  # bytes of each device that a sleeping model still holds; None if unknown

    @classmethod
    def of(cls, error: LoadFailed | WorkerLost | SleepFailed) -> Self:
        kind = next(name for name, type in _ERRORS.items() if isinstance(error, type))
        return cls(error.detail, kind, error.took if isinstance(error, OutOfMemory) else None)

    def as_error(self) -> LoadFailed | WorkerLost | SleepFailed:
        """Return the error from which ``of`` made this."""
        message = self.error or ""
        return OutOfMemory(message, self.took) if self.kind == "oom" else _ERRORS[self.kind](message)


_exchange_decoder = msgspec.msgpack.Decoder(Exchange)
_events_decoder = msgspec.msgpack.Decoder(list[Emitted], ext_hook=file.unpack)
_taken_decoder = msgspec.msgpack.Decoder(MemoryUsage)
_outcome_decoder = msgspec.msgpack.Decoder(Outcome)
_stats_decoder = msgspec.msgpack.Decoder(ReplicaStats)


class RunnerReplica:
    """The Serve deployment of ``Replica``, with encoded arguments and results: mostly an ``Outcome``.

    The constructor does nothing that can fail, because Serve would repeat it without reporting the error.
    """

    def __init__(self, name: str, zygote_socket: str, run_dir: str) -> None:
        logs.configure()
        self._replica = Replica(name, zygote_socket, run_dir)

    async def load(self, spec: bytes) -> bytes:
        loading = self._replica.load(msgspec.msgpack.decode(spec, type=LoadSpec))
        return await _outcome(loading, lambda report: Outcome(levels=report.levels))

    async def sleep(self, level: int) -> bytes:
        return await _outcome(self._replica.sleep(level), lambda left: Outcome(left=left))

    async def wake(self) -> bytes:
        return await _outcome(self._replica.wake(), lambda _: Outcome())

    async def unload(self) -> None:
        await self._replica.unload()

    async def exchange(self, payload: bytes) -> None:
        """Take an encoded ``Exchange``."""
        message = _exchange_decoder.decode(payload)
        await self._replica.exchange(message.jobs, message.cancels, message.acknowledged, message.limit)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield batches of events and peaks of memory, then an ``Outcome`` if the worker process died."""
        try:
            async for batch in self._replica.events():
                yield (b"t" if isinstance(batch, MemoryUsage) else b"e") + msgspec.msgpack.encode(batch)
        except WorkerLost as error:
            yield b"x" + msgspec.msgpack.encode(Outcome.of(error))

    async def stats(self) -> bytes:
        """Return an encoded ``ReplicaStats``."""
        return msgspec.msgpack.encode(await self._replica.stats())


async def _outcome(work: Awaitable[T], success: Callable[[T], Outcome]) -> bytes:
    """Return the encoded outcome of a call, whether it succeeds or fails."""
    try:
        outcome = success(await work)
    except (LoadFailed, SleepFailed, WorkerLost) as error:
        outcome = Outcome.of(error)
    return msgspec.msgpack.encode(outcome)


class _Link:
    """The connection to one replica, with the messages that wait for it."""

    def __init__(self, name: str, handle: DeploymentHandle[Any]) -> None:
        self.name = name
        self.handle = handle
        self.waiting = Exchange()
        self.pump: asyncio.Task[None] | None = None
        self.stream: Any = None
        self.broken: str | None = None

    def take(self) -> bytes | None:
        waiting, self.waiting = self.waiting, Exchange()
        return None if waiting == Exchange() else msgspec.msgpack.encode(waiting)


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
        """Return the models that an earlier gateway has left loaded, and start the first spare replica."""
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
                _log.warning("replica %s does not answer and is deleted: %s", name, error)
                await asyncio.to_thread(serve.delete, name, _blocking=False)
                continue
            if stats.spec is None:
                self._spares.append(link)
            else:
                self._links[stats.spec.model] = link
                held, levels = frozenset(stats.held), frozenset(stats.levels)
                adopted.append(
                    AdoptedModel(stats.spec, held, levels, stats.level, stats.changing_sleep_state)
                )
        self._keep_spare()
        return adopted

    async def answers(self) -> bool:
        """Return whether Serve's controller, which starts the replicas, answers."""
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
            link.broken = None
            outcome = _outcome_decoder.decode(await link.handle.load.remote(msgspec.msgpack.encode(spec)))
        except _GONE as error:
            _raise_if_cancelled(error)
            raise WorkerLost(f"the runner replica of {spec.model} died while loading it: {error}") from error
        if outcome.error is None:
            return frozenset(outcome.levels)
        del self._links[spec.model]
        await self._give_back(link)
        raise outcome.as_error()

    async def unload(self, model: str) -> None:
        link = self._links.pop(model, None)
        if link is None:
            return
        try:
            await link.handle.unload.remote()
        except _GONE as error:
            _raise_if_cancelled(error)
            _log.warning("replica %s died while unloading %s: %s", link.name, model, error)
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
        if outcome.error is not None:
            raise outcome.as_error()
        return outcome

    def submit(self, model: str, job: Job) -> None:
        if (link := self._links.get(model)) is not None:
            link.waiting.jobs.append(job)
            self._pump(link)

    def cancel(self, model: str, id: str) -> None:
        if (link := self._links.get(model)) is not None:
            link.waiting.cancels.append(id)
            self._pump(link)

    def acknowledge(self, model: str, id: str) -> None:
        """Acknowledge a finished prediction together with the next job, or after a second."""
        link = self._links.get(model)
        if link is None:
            return
        if not link.waiting.acknowledged:
            asyncio.get_running_loop().call_later(1.0, self._pump, link)
        link.waiting.acknowledged.append(id)

    def limit(self, model: str, memory: int) -> None:
        if (link := self._links.get(model)) is not None:
            link.waiting.limit = memory
            self._pump(link)

    async def events(self, model: str) -> AsyncIterator[list[Emitted] | MemoryUsage]:
        link = self._links.get(model)
        if link is None:
            raise WorkerLost(f"{model} is not loaded")
        link.stream = link.handle.options(stream=True).events.remote()
        try:
            async for payload in link.stream:
                body = memoryview(payload)[1:]
                match payload[:1]:
                    case b"x":
                        raise _outcome_decoder.decode(body).as_error()
                    case b"t":
                        yield _taken_decoder.decode(body)
                    case _:
                        yield _events_decoder.decode(body)
        except _GONE as error:
            if link.broken is None:
                _raise_if_cancelled(error)
            first, _, _ = (link.broken or str(error) or type(error).__name__).partition("\n")
            raise WorkerLost(f"the runner replica of {model} has died: {first}") from error
        finally:
            link.stream = None

    async def close(self) -> None:
        tasks = [link.pump for link in self._links.values() if link.pump is not None]
        if self._spare_wanted is not None:
            tasks.append(self._spare_wanted)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _pump(self, link: _Link) -> None:
        if link.pump is None or link.pump.done():
            link.pump = asyncio.get_running_loop().create_task(self._send(link))

    async def _send(self, link: _Link) -> None:
        while (payload := link.take()) is not None:
            try:
                await link.handle.exchange.remote(payload)
            except WorkerLost:  # ``events`` raises this error with its reason
                continue
            # The messages of this call are lost, so the stream of events must end.
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
                _raise_if_cancelled(error)
                link.broken = str(error) or type(error).__name__
                if link.stream is not None:
                    link.stream.cancel()
                return

    async def _give_back(self, link: _Link) -> None:
        if self._spares:
            try:
                await asyncio.to_thread(serve.delete, link.name, _blocking=False)
            except _GONE as error:  # the next gateway finds the replica and uses it as a spare
                _raise_if_cancelled(error)
                _log.warning("replica %s could not be deleted: %s", link.name, error)
        else:
            self._spares.append(_Link(link.name, link.handle))

    async def _take_spare(self) -> _Link:
        """Return a spare replica; wait until one is started if there is none."""
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
        _log.error("no spare runner replica could be started: %s: the next load tries again", error)


def _tuned(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """Return the handle with calls over gRPC, which take less than half the time of calls to a Ray actor."""
    return handle.options(_by_reference=False)


def _raise_if_cancelled(error: BaseException) -> None:
    """Raise ``error`` if this task was cancelled. Serve cancels a call too, when the replica has died."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
