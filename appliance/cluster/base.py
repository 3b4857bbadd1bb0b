"""The interface between the engine and the processes that run models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.prediction import Emitted, Job
from appliance.runners.base import LoadSpec
from appliance.worker.memory_monitor import MemoryUsage

_log = logging.getLogger(__name__)

_SILENCE: Final = 30.0  # seconds without an answer between two warnings in the log

T = TypeVar("T")
P = TypeVar("P", bound=asyncio.Protocol)


async def await_answer(call: Awaitable[T], replica: str, silence: float = _SILENCE) -> T:
    """Return the result of a call to a replica; log a warning every ``silence`` seconds until it comes."""
    answer = asyncio.ensure_future(call)
    waited = 0.0
    try:
        while not (await asyncio.wait({answer}, timeout=silence))[0]:
            waited += silence
            _log.warning(
                "runner replica %s has not answered for %.1f s, and no model can be loaded there: unless the "
                "machine is busy, check whether a firewall blocks connections to its own IP address",
                replica,
                waited,
            )
        return await answer
    finally:
        answer.cancel()


class AdoptedModel(msgspec.Struct, frozen=True):
    """A model that a previous gateway loaded, and the predictions that its replica still has."""

    spec: LoadSpec
    held: frozenset[str]  # prediction ids
    levels: frozenset[int] = frozenset()  # sleep levels that its worker process supports
    level: int | None = None  # the sleep level that it is in; None if it is awake
    changing_sleep_state: bool = False  # it is falling asleep or waking


class PartState(msgspec.Struct, frozen=True):
    """The state of one part of a model on several machines."""

    node: str
    state: Literal["waiting for a replica", "loading", "ready", "ending"]


class NodeFolders(msgspec.Struct, frozen=True):
    """Absolute paths on a node."""

    run_dir: Path  # sockets and pid files of replicas and worker processes
    outputs: Path  # output files of predictions: one folder for each prediction
    cache: Path  # compile caches: one folder for each kind of model


class NodeConnection(Protocol):
    """The connection to the agent of a node, as far as models need it.

    All methods but ``open_socket`` raise ``NodeLost`` if the node cannot be reached, and another
    ``ApplianceError`` if the node refuses or cannot do what was asked.
    """

    async def open_socket(self, name: str, protocol: Callable[[], P]) -> tuple[object, P]:
        """Connect to the Unix socket ``name`` in the run folder of the node.

        Raises:
            OSError: no process listens there, or the node cannot be reached.
        """
        ...

    async def prepare(self, modules: list[str]) -> None:
        """Ask the node's zygote to import ``modules``; do not wait for the import."""

    async def send_file(self, source: Path, prediction: str) -> str:
        """Copy an input file of a prediction (id) to the node; return its absolute path there."""
        ...

    async def fetch_file(self, path: str, target: Path) -> None:
        """Copy the file at the absolute ``path`` of the node to this machine."""

    async def drop_files(self, paths: list[str]) -> None:
        """Delete files and folders of predictions on the node; ignore those that do not exist."""

    async def drop_others(self, predictions: list[str]) -> None:
        """Delete the input and output files of all predictions on the node except these (ids)."""

    async def copy_weights(
        self,
        paths: Sequence[Path],
        keep: Iterable[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, str]:
        """Copy files and folders that the node does not have; return their paths on the node by path here.

        If the disk of the node gets full, other copies are deleted, except the paths ``keep``. ``progress``
        is called with the bytes that were copied, and the bytes to copy.
        """
        ...


class Cluster(Protocol):
    """Loads models, sends them jobs, and returns their events.

    ``submit``, ``cancel``, ``acknowledge`` and ``limit`` only queue a message: all messages for one model are
    sent together. Only ``events`` reports that the replica or its worker process has died.
    """

    async def adopt(self) -> list[AdoptedModel]:
        """Return the loaded models of a previous gateway. Call this once, before all other methods."""

    async def answers(self) -> bool:
        """Return whether the process that starts the replicas responds."""
        ...

    async def prepare(self, modules: list[str]) -> None:
        """Ask the zygote to import ``modules`` before loads need them; do not wait for the import."""

    async def copy_weights(self, spec: LoadSpec) -> int:
        """Copy the weights of a model to the node that will load it; return how many bytes were copied.

        For a model on several machines, call this once for each machine, with the devices of this machine.

        Raises:
            LoadFailed: a file cannot be copied; the message has the reason.
            NodeLost: the node cannot be reached.
        """

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        """Load a model; return the sleep levels that its worker process supports.

        A model with devices of several nodes gets a part on each of them. If a part fails, the others are
        unloaded, and the attribute ``node`` of the error names the node of the part that failed.

        Raises:
            LoadFailed: the model cannot be loaded; the message has the reason.
            WorkerLost: the replica or the worker process died during the load; a retry may succeed.
            OutOfMemory: the worker process used too much memory; a retry with more memory may succeed.
        """

    def parts(self, model: str) -> list[PartState]:
        """Return the parts of a model on several machines, the leader first; empty for other models."""
        ...

    async def unload(self, model: str) -> None:
        """Stop the model's worker process; return once its memory is free. Do nothing if it is not loaded."""

    async def sleep(self, model: str, level: int) -> int | None:
        """Put a model to sleep: free its devices and keep its worker process. No prediction may run on it.

        Returns the bytes of each device that the model still uses; None if unknown.

        Raises:
            SleepFailed: the model could not fall asleep, and should be unloaded.
            WorkerLost: the replica or the worker process died; ``events`` raises this too.
        """

    async def wake(self, model: str) -> None:
        """Wake a sleeping model; return once it is ready.

        Raises:
            SleepFailed: the model could not wake, and should be unloaded.
            WorkerLost: the replica or the worker process died; ``events`` raises this too.
        """

    def submit(self, model: str, job: Job) -> None:
        """Send a job to a loaded model; do nothing if the model is being unloaded."""

    def cancel(self, model: str, id: str) -> None:
        """Ask the model to cancel a prediction. The ``Done`` event still follows, unless the process dies."""

    def acknowledge(self, model: str, id: str) -> None:
        """Tell the replica that the end of the prediction is stored, so that it may drop the events."""

    def stored(self, model: str, id: str, attempt: int, n: int) -> None:
        """Tell that events up to number ``n`` of an adopted prediction's attempt are stored already.

        Their output files are not fetched again from another node.
        """

    def discard(self, model: str, id: str) -> None:
        """Cancel an adopted prediction that has ended or is not stored: of its events only the end matters.

        Its output files are not fetched from another node.
        """

    def limit(self, model: str, memory: int) -> None:
        """Set how many bytes of main memory the model's worker process may use from now on."""

    def events(self, model: str) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
        """Yield unacknowledged events, then new events, engine metrics and memory peaks.

        The events end when the model is unloaded, or when another caller calls ``events`` for the same
        model. A caller whose events ended although the model is loaded must call ``events`` again.

        Raises:
            WorkerLost: no model is loaded, or the replica or the worker process died (the message says how).
            OutOfMemory: the worker process used too much memory.
        """
        ...

    def add_node(self, name: str, folders: NodeFolders, connection: NodeConnection, address: str) -> None:
        """Allow loads on a node that has joined. ``address`` is its IP address in the cluster."""

    def remove_node(self, name: str, reason: str) -> None:
        """Forget a lost node: calls and events of its models raise ``NodeLost`` with ``reason``."""

    async def close(self) -> None:
        """Close the connections; loaded models stay loaded."""
