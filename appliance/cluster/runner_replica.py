"""The Serve deployment of a runner replica, and the results of its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance.cluster import node_spec
from appliance.domain.errors import LoadFailed, SleepFailed, WorkerLost
from appliance.observability import logs
from appliance.runners.base import LoadSpec
from appliance.worker import data_socket
from appliance.worker.protocol import Failure
from appliance.worker.replica import LoadReport, Replica

T = TypeVar("T")


def data_socket_path(run_dir: Path, name: str) -> Path:
    """Return the path of the data socket of the replica with this name."""
    return run_dir / f"{name}.sock"


class Outcome(msgspec.Struct, frozen=True):
    """The encoded result of a call. Errors are sent as data, because Ray changes exceptions."""

    failure: Failure | None = None
    levels: list[int] = []  # sleep levels that a loaded model supports
    left: int | None = None  # bytes of each device that a sleeping model still holds; None if unknown


class RunnerReplica:
    """The Serve deployment of ``Replica``. Arguments and results are encoded; most results are ``Outcome``.

    The constructor does nothing that can fail, because Serve would retry it without reporting the error.
    """

    def __init__(self, name: str, zygote_socket: str, run_dir: str) -> None:
        logs.configure()
        self._replica = Replica(name, zygote_socket, run_dir)
        self._data_socket = data_socket_path(Path(run_dir), name)
        self._server: asyncio.AbstractServer | None = None
        self._requested: LoadSpec | None = None  # the last spec as the engine knows it

    async def load(self, spec: bytes, requested: bytes | None = None) -> bytes:
        """Load a model. ``requested`` is the spec in the engine's terms, if it differs from ``spec``."""
        self._requested = None if requested is None else msgspec.msgpack.decode(requested, type=LoadSpec)
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
        """Return an encoded ``ReplicaStats``, with the spec in the engine's terms."""
        stats = await self._replica.stats()
        if stats.spec is not None and self._requested is not None:
            copies = set(node_spec.paths_in(stats.spec)) - set(node_spec.paths_in(self._requested))
            part = stats.spec.part
            stats = msgspec.structs.replace(stats, spec=self._requested, part=part, copies=sorted(copies))
        return msgspec.msgpack.encode(stats)


async def _outcome(work: Awaitable[T], success: Callable[[T], Outcome]) -> bytes:
    """Await ``work`` and return its encoded outcome, a success or a failure."""
    try:
        outcome = success(await work)
    except (LoadFailed, SleepFailed, WorkerLost) as error:
        outcome = Outcome(Failure.of(error))
    return msgspec.msgpack.encode(outcome)
