"""The interface between the engine and the processes that run models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Final, Protocol, TypeVar

import msgspec

from appliance.domain.prediction import Emitted, Job
from appliance.runners.base import LoadSpec
from appliance.worker.memory_monitor import MemoryUsage

_log = logging.getLogger(__name__)

_SILENCE: Final = 30.0  # seconds without an answer between two warnings in the log

T = TypeVar("T")


async def await_answer(call: Awaitable[T], replica: str, silence: float = _SILENCE) -> T:
    """Return the result of a call to a replica. Until it comes, warn regularly that models cannot load."""
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
    """A model that an earlier gateway has loaded, and the predictions that its replica still holds."""

    spec: LoadSpec
    held: frozenset[str]  # prediction ids
    levels: frozenset[int] = frozenset()  # sleep levels that its worker process supports
    level: int | None = None  # the sleep level that it is in; None if it is awake
    changing_sleep_state: bool = False  # it is falling asleep or waking


class Cluster(Protocol):
    """Loads models, sends them jobs, and returns their events.

    ``submit``, ``cancel``, ``acknowledge`` and ``limit`` only queue a message: all messages for one model are
    sent together. Only ``events`` reports that the replica or its worker process has died.
    """

    async def adopt(self) -> list[AdoptedModel]:
        """Return the models that an earlier gateway has left loaded. Call this once, and first."""

    async def answers(self) -> bool:
        """Return whether the process that starts the replicas answers."""
        ...

    async def prepare(self, modules: list[str]) -> None:
        """Ask the zygote to import ``modules`` ahead of the loads that need them; do not wait for it."""

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        """Load a model; return the sleep levels that its worker process supports.

        Raises:
            LoadFailed: the model cannot be loaded; the message says why.
            WorkerLost: the replica or the worker process died meanwhile; another attempt may succeed.
            OutOfMemory: the worker process used too much memory; an attempt with more memory may succeed.
        """

    async def unload(self, model: str) -> None:
        """Stop the model's worker process; return once its memory is free. Do nothing if it is not loaded."""

    async def sleep(self, model: str, level: int) -> int | None:
        """Put a model without running predictions to sleep: it frees its devices and keeps its process.

        Returns the bytes of each device that it still holds; None if unknown.

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
        """Ask the model to cancel a prediction. Its ``Done`` event still follows, unless the process dies."""

    def acknowledge(self, model: str, id: str) -> None:
        """Tell the replica that the end of the prediction is stored, so that it may drop the events."""

    def limit(self, model: str, memory: int) -> None:
        """Set how many bytes of main memory the model's worker process may use from now on."""

    def events(self, model: str) -> AsyncIterator[list[Emitted] | MemoryUsage]:
        """Yield unacknowledged events, then new ones; end when the model is unloaded.

        New peaks of the worker process's memory are among them. The events also end when another caller asks
        for them; the caller that should get them then has to ask again.

        Raises:
            WorkerLost: the replica or the worker process died (the message says how), or no model is loaded.
            OutOfMemory: the worker process used too much memory.
        """
        ...

    async def close(self) -> None:
        """Close the connections; loaded models stay loaded."""
