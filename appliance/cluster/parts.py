"""A model on several machines: one part on each, which are loaded, read and unloaded together.

Part 0 is the leader, which runs the predictions; the others are followers, which only compute. If one part
fails or ends, all others are unloaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from appliance.cluster.base import PartState
from appliance.cluster.event_streams import events_of
from appliance.cluster.replicas import REPLICA_ERRORS, Link, Machine, ReplicaPool, raise_if_cancelled
from appliance.cluster.runner_replica import Outcome
from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import LoadFailed, NodeLost, OutOfMemory, WorkerLost
from appliance.domain.prediction import Emitted
from appliance.runners.base import Part
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.replica import ReplicaStats

_log = logging.getLogger(__name__)

#: Seconds until ``unload`` is called again for a part that is still loading: the first call may have arrived
#: before the call of ``load``.
_UNLOAD_AGAIN: Final = 1.0
#: Seconds, at most, to wait for the last events of the leader, and their files, after another part has ended.
_LAST_EVENTS: Final = 10.0
#: Errors of one part that make other parts fail too.
_CAUSES: Final = (NodeLost, OutOfMemory)

_Failure = LoadFailed | WorkerLost
_Received = list[Emitted] | EngineMetrics | MemoryUsage
_outcome_decoder: Final = msgspec.msgpack.Decoder(Outcome)


class FoundPart(NamedTuple):
    """A part of a model that a previous gateway has loaded."""

    link: Link
    part: Part
    stats: ReplicaStats


def links_of_complete_load(found: Sequence[FoundPart]) -> dict[int, Link] | None:
    """Return the links by index if these are all parts of one load, and all are ready; else None."""
    specs = {each.stats.spec == found[0].stats.spec for each in found}
    loads = {(part.count, part.leader, part.port) for _, part, _ in found}
    ready = all(each.stats.pid is not None and not each.link.machine.is_lost for each in found)
    links = {each.part.index: each.link for each in found}
    whole = sorted(links) == list(range(found[0].part.count)) and len(links) == len(found)
    return links if whole and ready and specs == {True} and len(loads) == 1 else None


class Parts:
    """The parts of one model, on the gateway's event loop."""

    def __init__(
        self,
        model: str,
        port: int,
        *,
        give_back: Callable[[Link], Awaitable[None]],
        on_end: Callable[[], None],
    ) -> None:
        """The leader listens on ``port`` as long as the model is loaded.

        ``give_back`` makes a replica spare again. ``on_end`` is called once all parts are unloaded.
        """
        self._model = model
        self.port = port
        self._give_back = give_back
        self._on_end = on_end
        self.links: dict[int, Link] = {}  # by index of the part
        self._nodes: list[str] = []
        self._loads: dict[int, asyncio.Task[None]] = {}  # by index of the part
        self._failures: list[_Failure] = []  # the first one first
        self._stopping: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def leader(self) -> Link:
        return self.links[0]

    def adopt(self, links: dict[int, Link]) -> None:
        """Take over the parts that a previous gateway has loaded."""
        self.links = links
        self._nodes = [links[index].machine.name for index in sorted(links)]

    @property
    def states(self) -> list[PartState]:
        """The states of all parts, that of the leader first."""
        return [PartState(node, self._state(index)) for index, node in enumerate(self._nodes)]

    def _state(self, index: int) -> Literal["waiting for a replica", "loading", "ready", "ending"]:
        if self._stopping is not None:
            return "ending"
        if index not in self.links:
            return "waiting for a replica"
        return "loading" if index in self._loads and not self._loads[index].done() else "ready"

    # -- load --------------------------------------------------------------------------------------------

    async def load(
        self, pools: Sequence[ReplicaPool], arguments: Callable[[int, Machine], list[bytes]]
    ) -> None:
        """Load a part on each machine, all at once. A load that is cancelled unloads all parts.

        ``arguments`` returns the encoded arguments of ``RunnerReplica.load``.

        Raises:
            LoadFailed: a part cannot be loaded, or the model was unloaded during its load.
            WorkerLost: a replica or worker process died during the load, or a node was lost.
        """
        loop = asyncio.get_running_loop()
        self._nodes = [pool.machine.name for pool in pools]
        for index, pool in enumerate(pools):
            self._loads[index] = loop.create_task(self._load(index, pool, arguments))
        try:
            await self._until_loaded()
        except asyncio.CancelledError:
            self._stop_soon()
            raise
        if self._failures or self._stopping is not None:
            await self.end()
            raise self._cause()

    async def _until_loaded(self) -> None:
        """Return once all parts are loaded, one has failed or ended, or they are being unloaded."""
        pending, watches = set(self._loads.values()), set[asyncio.Task[None]]()
        try:
            while pending and not self._failures and self._stopping is None:
                done, _ = await asyncio.wait(pending | watches, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.cancelled():
                        task.result()
                loaded = [index for index, task in self._loads.items() if task in done & pending]
                if not self._failures and self._stopping is None:
                    watches |= {asyncio.ensure_future(self._watch(self.links[index])) for index in loaded}
                pending -= done
                watches -= done
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)

    async def _watch(self, link: Link) -> None:
        """Notice the end of a loaded part. Parts that are still loading may wait for it for ever."""
        try:
            async for _ in events_of(self._model, link):
                pass
        except WorkerLost as error:
            self._failed(link.machine, error)

    async def _load(
        self, index: int, pool: ReplicaPool, arguments: Callable[[int, Machine], list[bytes]]
    ) -> None:
        try:
            link = self.links[index] = await pool.take_spare()
            call = link.handle.load.remote(*arguments(index, link.machine))
            outcome = _outcome_decoder.decode(await link.call(call))
        except NodeLost as error:
            self._failed(pool.machine, error)
        except REPLICA_ERRORS as error:
            raise_if_cancelled(error)
            text = f"the runner replica died while loading model {self._model}: {error}"
            self._failed(pool.machine, WorkerLost(text))
        else:
            if outcome.failure is not None:
                failure = outcome.failure.as_error()
                assert isinstance(failure, LoadFailed | WorkerLost)
                self._failed(pool.machine, failure)

    def _failed(self, machine: Machine, error: _Failure) -> None:
        """Record the error of a part; during the unload, only errors that can be the cause of the others."""
        if self._stopping is None or isinstance(error, _CAUSES):
            self._failures.append(_on_node(error, machine.name))

    def _cause(self) -> _Failure:
        """Return the error of the part that failed first, or of a lost node or full memory that caused it."""
        causes = [error for error in self._failures if isinstance(error, _CAUSES)]
        if not self._failures:
            return LoadFailed(f"model {self._model} was unloaded during its load")
        return (causes or self._failures)[0]

    # -- unload ------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Unload all parts, and give their replicas back; return once their memory is free."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        try:
            await asyncio.shield(self._stop_soon())
            ends = await asyncio.gather(*map(self._end_part, self.links.values()), return_exceptions=True)
            for end in ends:
                if end is not None:
                    raise end
        finally:
            self._on_end()

    async def _end_part(self, link: Link) -> None:
        await link.until_ended()
        await self._give_back(link)

    def _stop_soon(self) -> asyncio.Task[None]:
        """Begin to unload all parts."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        return self._stopping

    async def _stop(self) -> None:
        for index, loading in self._loads.items():
            if index not in self.links:  # it waits for a replica
                loading.cancel()
        await asyncio.gather(*(self._unload(index, link) for index, link in self.links.items()))

    async def _unload(self, index: int, link: Link) -> None:
        """Unload a part; return once its memory is free and its load, if any, has ended."""
        loading = self._loads.get(index)
        while True:
            try:
                await link.call(link.handle.unload.remote())
            except NodeLost as error:  # its worker processes are gone
                self._failed(link.machine, error)
            except REPLICA_ERRORS as error:
                raise_if_cancelled(error)
                text = "runner replica %s died while unloading model %s: %s"
                _log.warning(text, link.name, self._model, error)
                await self._wait_until_back(link)
            if loading is None or (await asyncio.wait({loading}, timeout=_UNLOAD_AGAIN))[0]:
                return

    async def _wait_until_back(self, link: Link) -> None:
        try:
            await link.until_back()
        except NodeLost as error:
            self._failed(link.machine, error)

    # -- events ------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[_Received]:
        """Yield the messages of the leader, and the memory peaks of all parts, see ``Cluster.events``.

        If a part ends, the others are unloaded before its error is raised.
        """
        received: asyncio.Queue[_Received | Exception | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        readers = [
            loop.create_task(self._read(index, link, received)) for index, link in sorted(self.links.items())
        ]
        try:
            while (message := await received.get()) is not None:
                if isinstance(message, Exception):
                    raise message
                yield message
            if not self._failures:  # the leader's stream has ended
                return
            await asyncio.shield(self._stop_soon())
            await asyncio.wait({readers[0]}, timeout=_LAST_EVENTS)
            while not received.empty():
                message = received.get_nowait()
                if message is not None and not isinstance(message, Exception):
                    yield message
            await self.end()
            raise self._cause()
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _read(
        self, index: int, link: Link, received: asyncio.Queue[_Received | Exception | None]
    ) -> None:
        """Put the messages of a part into ``received``; at the end an unexpected error, if any, and None.

        If the stream of a follower ends while the model is loaded, read the next one.
        """
        try:
            while self._stopping is None:
                async for message in events_of(self._model, link):
                    if index == 0 or isinstance(message, MemoryUsage):
                        received.put_nowait(message)
                if index == 0:
                    break
        except WorkerLost as error:
            self._failed(link.machine, error)
        except Exception as error:  # noqa: BLE001  # raised again where the messages are read
            received.put_nowait(error)
        received.put_nowait(None)

    def limit(self, memory: int) -> None:
        """Set how many bytes of main memory each part may use from now on."""
        for link in self.links.values():
            link.set_limit(memory)

    async def close(self) -> None:
        """Close the connections; the parts stay loaded."""
        tasks = [*self._loads.values()]
        tasks += [task for task in (self._stopping, self._ending) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in self.links.values():
            link.close()


def _on_node(error: _Failure, node: str) -> _Failure:
    """Return an error of a part that names its node."""
    text = f"on node {node}: {error.detail}"
    match error:
        case NodeLost():
            found: _Failure = NodeLost(error.detail)  # it names the node already
        case OutOfMemory():
            found = OutOfMemory(text, error.memory)
        case WorkerLost():
            found = WorkerLost(text)
        case _:
            found = LoadFailed(text)
    found.node = node
    return found
