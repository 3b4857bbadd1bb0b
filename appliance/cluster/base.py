"""The interface between the engine and the place where models run."""

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


class Adopted(msgspec.Struct, frozen=True):
    """A model that was loaded before this gateway began, and the predictions its replica still holds."""

    spec: LoadSpec
    held: frozenset[str]
    levels: frozenset[int] = frozenset()  # sleep levels that its worker process supports
    level: int | None = None  # the sleep level that it is in; None if it is awake
    changing_sleep_state: bool = False  # it is falling asleep, or waking


class Cluster(Protocol):
    """Loads models and carries jobs to them and events back.

    ``submit``, ``cancel`` and ``acknowledge`` only queue: what waits for one model travels together. What
    goes wrong with the replica or its worker process is reported in one place, by ``events``.
    """

    async def adopt(self) -> list[Adopted]:
        """Return the models that an earlier gateway left loaded; called once, before anything else."""

    async def answers(self) -> bool:
        """Return whether the process that keeps the replicas answers."""
        ...

    async def prepare(self, modules: list[str]) -> None:
        """Have the zygote import these modules before models that need them are loaded."""

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        """Load a model; return the sleep levels that its worker process supports.

        Raises:
            LoadFailed: the model cannot be loaded; the message says why.
            WorkerLost: the replica or the worker process died meanwhile; trying again may help.
            OutOfMemory: the worker process took too much memory; more of it may help.
        """

    async def unload(self, model: str) -> None:
        """Stop the model's worker process and return once its memory is free; no-op if it is not loaded."""

    async def sleep(self, model: str, level: int) -> int | None:
        """Put a model on which no prediction runs to sleep: it frees its devices, and its process stays.

        Returns the bytes of each device that it still holds; None if that is not known.

        Raises:
            SleepFailed: it did not; the worker process should be unloaded.
            WorkerLost: the replica or the worker process died; ``events`` says so too.
        """

    async def wake(self, model: str) -> None:
        """Wake a sleeping model; return once it is ready.

        Raises:
            SleepFailed: it did not; the worker process should be unloaded.
            WorkerLost: the replica or the worker process died; ``events`` says so too.
        """

    def submit(self, model: str, job: Job) -> None:
        """Hand a job to a loaded model; one that is being unloaded takes none."""

    def cancel(self, model: str, id: str) -> None:
        """Ask the model to cancel a prediction. Its ``Done`` event still arrives, unless the process dies."""

    def acknowledge(self, model: str, id: str) -> None:
        """Tell the replica that the prediction is stored as finished: its events may be dropped."""

    def limit(self, model: str, memory: int) -> None:
        """Set the bytes of main memory that the model's worker process may take from now on."""

    def events(self, model: str) -> AsyncIterator[list[Emitted] | MemoryUsage]:
        """Yield unacknowledged events, then new ones; ends when the model is unloaded.

        Each new peak of the worker process's memory is among them. The events also end when another caller
        asks for them; the caller that should have them then asks again.

        Raises:
            WorkerLost: the replica or the worker process died (the message says how), or no model is loaded.
            OutOfMemory: the worker process took too much memory.
        """
        ...

    async def close(self) -> None:
        """Close the connections; loaded models stay loaded."""
