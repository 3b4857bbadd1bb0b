"""Runner replicas as Ray Serve deployments, one application each, called over Serve handles.

Replicas are named ``runner-<n>`` and take any model: one spare is always kept up, so that a cold start does
not wait for Ray to start a process. A replica whose model is unloaded becomes a spare again, or is deleted if
there is one already.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, Literal, Self

import msgspec
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from appliance.cluster.base import Adopted, await_answer
from appliance.domain import file
from appliance.domain.errors import LoadFailed, OutOfMemory, SleepFailed, WorkerLost
from appliance.domain.prediction import Emitted, Job
from appliance.observability import logs
from appliance.runners.base import LoadSpec
from appliance.worker import handle as worker_handle
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.replica import Replica, ReplicaStats

_log = logging.getLogger(__name__)

RUNNER: Final = "runner-"
#: What a call to a replica may end with when the replica, or the way to it, is gone. gRPC errors are not
#: Ray errors when the channel breaks in the middle of a stream.
_GONE: Final = (RayError, RayServeException, ConnectionError, RuntimeError, asyncio.CancelledError)


class Exchange(msgspec.Struct, frozen=True):
    """Everything that waits for one model, in one call."""

    jobs: list[Job]
    cancels: list[str]
    acknowledged: list[str]
    limit: int | None = None  # bytes of main memory that the worker process may take from now on


class Outcome(msgspec.Struct, frozen=True):
    """How a call went, or why events end; errors travel as data: exceptions change their type on the way."""

    error: str | None = None
    kind: Literal["failed", "lost", "oom", "sleep_failed"] = "failed"
    took: int | None = None  # bytes, of a worker process that ran out of memory
    levels: list[int] = []  # of sleep that a loaded model is able to
    left: int | None = None  # bytes of each device that a sleeper is known to hold

    @classmethod
    def of(cls, error: LoadFailed | WorkerLost | SleepFailed) -> Self:
        """Return the message from which ``raised`` makes the error again."""
        match error:
            case OutOfMemory():
                return cls(error.detail, "oom", error.took)
            case WorkerLost():
                return cls(error.detail, "lost")
            case SleepFailed():
                return cls(error.detail, "sleep_failed")
        return cls(error.detail, "failed")

    def raised(self) -> LoadFailed | WorkerLost | SleepFailed:
        """The error, to be raised."""
        reason = self.error or ""
        match self.kind:
            case "oom":
                return OutOfMemory(reason, self.took)
            case "lost":
                return WorkerLost(reason)
            case "sleep_failed":
                return SleepFailed(reason)
            case "failed":
                return LoadFailed(reason)


_exchange_decoder = msgspec.msgpack.Decoder(Exchange)
_events_decoder = msgspec.msgpack.Decoder(list[Emitted], ext_hook=file.unpack)
_taken_decoder = msgspec.msgpack.Decoder(MemoryUsage)
_outcome_decoder = msgspec.msgpack.Decoder(Outcome)
_stats_decoder = msgspec.msgpack.Decoder(ReplicaStats)


class RunnerReplica:
    """The Serve deployment around ``Replica``: bytes in, bytes out."""

    def __init__(self, name: str, zygote_socket: str, run_dir: str) -> None:
        """Trivial on purpose: Serve retries constructors in silence, ``load`` can answer."""
        logs.configure()
        self._replica = Replica(name, zygote_socket, run_dir)

    async def load(self, spec: bytes) -> bytes:
        """Load a model; answers an ``Outcome``."""
        try:
            report = await self._replica.load(msgspec.msgpack.decode(spec, type=LoadSpec))
        except (LoadFailed, WorkerLost) as error:
            return msgspec.msgpack.encode(Outcome.of(error))
        return msgspec.msgpack.encode(Outcome(levels=report.levels))

    async def sleep(self, level: int) -> bytes:
        """Have the worker process give its device back; answers an ``Outcome``."""
        try:
            left = await self._replica.sleep(level)
        except (SleepFailed, WorkerLost) as error:
            return msgspec.msgpack.encode(Outcome.of(error))
        return msgspec.msgpack.encode(Outcome(left=left))

    async def wake(self) -> bytes:
        """Have the worker process take its device again; answers an ``Outcome``."""
        try:
            await self._replica.wake()
        except (SleepFailed, WorkerLost) as error:
            return msgspec.msgpack.encode(Outcome.of(error))
        return msgspec.msgpack.encode(Outcome())

    async def unload(self) -> None:
        """Stop the worker process; returns once it is gone."""
        await self._replica.unload()

    async def exchange(self, payload: bytes) -> None:
        """Take jobs, cancels and acknowledgements."""
        message = _exchange_decoder.decode(payload)
        await self._replica.exchange(message.jobs, message.cancels, message.acknowledged, message.limit)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield batches of events and memory use; if the worker process is lost, an ``Outcome`` is last."""
        try:
            async for batch in self._replica.events():
                yield (b"t" if isinstance(batch, MemoryUsage) else b"e") + msgspec.msgpack.encode(batch)
        except WorkerLost as error:
            yield b"x" + msgspec.msgpack.encode(Outcome.of(error))

    async def stats(self) -> bytes:
        """Return the loaded model and the predictions that this replica holds, as ``ReplicaStats``."""
        return msgspec.msgpack.encode(await self._replica.stats())


class _Link:
    """The way to one replica: what waits to be sent, and whether someone is sending."""

    def __init__(self, name: str, handle: DeploymentHandle[Any]) -> None:
        self.name = name
        self.handle = handle
        self.jobs: list[Job] = []
        self.cancels: list[str] = []
        self.acknowledged: list[str] = []
        self.limit: int | None = None
        self.pump: asyncio.Task[None] | None = None
        self.stream: Any = None
        self.broken: str | None = None

    def take(self) -> bytes | None:
        if not (self.jobs or self.cancels or self.acknowledged or self.limit):
            return None
        message = Exchange(self.jobs, self.cancels, self.acknowledged, self.limit)
        payload = msgspec.msgpack.encode(message)
        self.jobs, self.cancels, self.acknowledged, self.limit = [], [], [], None
        return payload


class RayCluster:
    """``Cluster`` on Ray Serve. Lives on the gateway's loop; every method is called there."""

    def __init__(self, zygote_socket: Path, run_dir: Path) -> None:
        """``zygote_socket`` forks worker processes; ``run_dir`` holds their logs and pid files."""
        self._zygote_socket = zygote_socket
        self._run_dir = run_dir
        self._links: dict[str, _Link] = {}  # by model
        self._spares: list[_Link] = []
        self._numbers = itertools.count()
        self._spare_wanted: asyncio.Task[None] | None = None

    async def adopt(self) -> list[Adopted]:
        """Return the models that an earlier gateway left loaded; start the first spare replica."""
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
                _log.warning("replica %s does not answer, it is given up: %s", name, error)
                await asyncio.to_thread(serve.delete, name, _blocking=False)
                continue
            if stats.spec is None:
                self._spares.append(link)
            else:
                self._links[stats.spec.model] = link
                held, levels = frozenset(stats.held), frozenset(stats.levels)
                adopted.append(Adopted(stats.spec, held, levels, stats.level, stats.changing_sleep_state))
        self._keep_spare()
        return adopted

    async def answers(self) -> bool:
        """Return whether Serve's controller, which keeps the replicas, answers."""
        try:
            await asyncio.to_thread(serve.status)
        except _GONE as error:
            _raise_if_cancelled(error)
            return False
        return True

    async def prepare(self, modules: list[str]) -> None:
        """Have the zygote import these modules before models that need them are loaded."""
        await worker_handle.prepare(self._zygote_socket, modules)

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        """Load a model; return the sleep levels that its worker process supports."""
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
        raise outcome.raised()

    async def unload(self, model: str) -> None:
        """Stop the model's worker process; return once its memory is free."""
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
        """Put a model to sleep; return the bytes of each device that it still holds, if known."""
        return (await self._change_sleep_state(model, "sleep", level)).left

    async def wake(self, model: str) -> None:
        """Wake a sleeping model; return once it is ready."""
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
            raise WorkerLost(f"the runner replica of {model} is gone: {error}") from error
        if outcome.error is not None:
            raise outcome.raised()
        return outcome

    def submit(self, model: str, job: Job) -> None:
        """Queue a job for a loaded model."""
        link = self._links.get(model)
        if link is not None:
            link.jobs.append(job)
            self._pump(link)

    def cancel(self, model: str, id: str) -> None:
        """Ask the model to cancel a prediction."""
        link = self._links.get(model)
        if link is not None:
            link.cancels.append(id)
            self._pump(link)

    def acknowledge(self, model: str, id: str) -> None:
        """Acknowledge a finished prediction with the next job, or after a second."""
        link = self._links.get(model)
        if link is None:
            return
        if not link.acknowledged:
            asyncio.get_running_loop().call_later(1.0, self._pump, link)
        link.acknowledged.append(id)

    def limit(self, model: str, memory: int) -> None:
        """Set the bytes of main memory that the model's worker process may take."""
        link = self._links.get(model)
        if link is not None:
            link.limit = memory
            self._pump(link)

    async def events(self, model: str) -> AsyncIterator[list[Emitted] | MemoryUsage]:
        """Yield unacknowledged events, then new ones and memory peaks, until the model is unloaded."""
        link = self._links.get(model)
        if link is None:
            raise WorkerLost(f"{model} is not loaded")
        link.stream = link.handle.options(stream=True).events.remote()
        try:
            async for payload in link.stream:
                body = memoryview(payload)[1:]
                match payload[:1]:
                    case b"x":
                        raise _outcome_decoder.decode(body).raised()
                    case b"t":
                        yield _taken_decoder.decode(body)
                    case _:
                        yield _events_decoder.decode(body)
        except _GONE as error:
            if link.broken is None:
                _raise_if_cancelled(error)
            first, _, _ = (link.broken or str(error) or type(error).__name__).partition("\n")
            raise WorkerLost(f"the runner replica of {model} is gone: {first}") from error
        finally:
            link.stream = None

    async def close(self) -> None:
        """Close the connections; loaded models stay loaded."""
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
            except WorkerLost:  # the reader of the events gets this error with its reason
                continue
            # After any error the events in this call are lost, so the stream of events must end.
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
            except _GONE as error:  # the next gateway finds the replica and keeps it as a spare
                _raise_if_cancelled(error)
                _log.warning("replica %s could not be deleted: %s", link.name, error)
        else:
            self._spares.append(_Link(link.name, link.handle))

    async def _take_spare(self) -> _Link:
        """A spare, waiting for the one being started if there is none yet."""
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
            max_ongoing_requests=1_000_000,  # admission is the scheduler's; Serve must never hold a call back
            health_check_period_s=1.0,  # how fast a killed replica is noticed and replaced
            health_check_timeout_s=30.0,
            graceful_shutdown_wait_loop_s=0.05,
            graceful_shutdown_timeout_s=2.0,  # the engine drains; here only the standing stream is left
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
        await await_answer(link.handle.stats.remote(), name)  # it is up, and known to the router of this loop
        self._spares.append(link)


def _log_failure(starting: asyncio.Task[None]) -> None:
    """Log that a spare replica could not be started; the next load then starts one itself."""
    if not starting.cancelled() and (error := starting.exception()) is not None:
        _log.error("no spare runner replica could be started: %s", error)


def _tuned(handle: DeploymentHandle[Any]) -> DeploymentHandle[Any]:
    """Return the handle with calls over gRPC, which take less than half the time of calls to an actor."""
    return handle.options(_by_reference=False)


def _raise_if_cancelled(error: BaseException) -> None:
    """Pass on a cancellation of our own task; one that came back from Serve means the replica is gone."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
