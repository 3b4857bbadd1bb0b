"""The interfaces between a model kind and the appliance.

A runner lives in an engine host, one process a loaded model. It is made by ``Runner(spec)``, made ready by
``setup()``, and then runs up to ``spec.concurrency`` predictions at a time until the process is killed.
``interface`` is called in the gateway, so a runner's module must import nothing heavy at its top.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import msgspec

from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What the appliance knows about a model kind without importing the kind's runner."""

    name: str  # `kind` in models.yaml
    runner: str  # "module:Class", imported on first use
    model: str | None = None  # "module:Class" of its models in models.yaml; None for a trainer
    trainer: str | None = None  # the kind of runner that trains new versions of the kind's models
    preload: tuple[str, ...] = ()  # modules that the zygote imports before it forks worker processes
    preload_on_cpu: tuple[str, ...] = ()  # additional ones on machines without a GPU
    operations: frozenset[str] = frozenset()  # constants of `operations` that the runner answers


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine host needs to load one model; travels as JSON or msgpack."""

    model: str  # owner/name
    version: str  # 64 hex digits; part of the identity of what is loaded
    kind: str
    options: dict[str, Any]  # the kind's own options, checked and with defaults filled in
    weights: str | None  # absolute path of the folder or file with the weights
    device: str  # "cpu", or "cuda:0,cuda:1" when several are used together
    placement: tuple[str, ...] = ()  # the same by the names of the ledger, logical devices included
    memory: int  # bytes reserved for this host on each of its devices
    limit: int | None = None  # bytes of main memory it may take, first; None: as many as it wants
    threads: int  # CPU threads it may compute with
    concurrency: int  # predictions it may run at a time
    cache: str  # absolute path of a folder for compile caches; kept between runs
    sleeps: bool = False  # it will be asked to sleep, if it is able to


class Runner(Protocol):
    """One loaded model. All methods run on the engine host's event loop."""

    kind: ClassVar[str]

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of a model with these options, all of them filled in. Called in the gateway."""
        ...

    def __init__(self, spec: LoadSpec) -> None:
        """Keep ``spec``; do nothing that can fail or take long."""

    async def setup(self) -> None:
        """Load the model.

        Raises:
            LoadFailed: the weights cannot be used; the message says why and what to do.
        """

    def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction; returning means success.

        Cancellation arrives as ``asyncio.CancelledError`` and must free what the prediction holds before it
        is raised on.

        Raises:
            PredictionFailed: the text is what the caller reads as ``error``.
        """
        ...

    async def close(self) -> None:
        """Let go of child processes before the host exits; the host is killed if this takes long."""


@runtime_checkable
class Sleeper(Protocol):
    """A runner whose model can give its device back and stay in its process.

    Nothing runs when it is told to sleep or to wake, and until it is awake.
    """

    @property
    def levels(self) -> tuple[int, ...]:
        """Sleep levels that the model supports after ``setup``: 1 keeps weights in main memory, 2 drops them.

        Empty where it would only pretend, because its device is main memory, say.
        """
        ...

    async def sleep(self, level: int) -> int | None:
        """Give the device back; returns how many bytes of each device it knows to hold still.

        None if it knows nothing of it.

        Whatever it raises means that the host is of no use any more.
        """

    async def wake(self) -> None:
        """Be as ready as after ``setup``; what it raises means the same."""
