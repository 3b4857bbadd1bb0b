"""The classes and protocols that a model kind implements.

Every loaded model has its own worker process with one runner. The process creates ``Runner(spec)``, loads the
model with ``setup()``, and then runs up to ``spec.concurrency`` predictions at a time until it ends. The
gateway calls ``Runner.interface``, so a runner's module must not import heavy libraries at its top.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a model kind that the appliance needs without importing the kind's libraries."""

    name: str  # `kind` in models.yaml
    runner: str  # "module:Class", imported on first use
    model: str | None = None  # "module:Class" of its models in models.yaml; None for a trainer
    trainer: str | None = None  # the kind of runner that trains new versions of the kind's models
    preload: tuple[str, ...] = ()  # modules that the zygote imports before it forks worker processes
    preload_on_cpu: tuple[str, ...] = ()  # further modules that it imports on machines without a GPU
    libraries: tuple[str, ...] = ()  # modules that the runner imports; `appliance doctor` checks them
    packages: tuple[str, ...] = ()  # distributions that an environment of a model contains, if installed
    operations: frozenset[str] = frozenset()  # supported operations: constants of `runners.operations`
    example_input: str | None = None  # a text input for the first example that users see


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker process loads of a model that runs on several machines: one part on each of them."""

    index: int  # 0: the leader, which runs the predictions; the others are followers, which only compute
    count: int  # machines that hold the model together
    address: str  # IPv4 address of this machine in the private network
    leader: str  # IPv4 address of the leader
    port: int  # TCP port on the leader where the parts find each other


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker process needs to load one model; travels as JSON or msgpack."""

    model: str  # owner/name
    version: str  # of the model, 64 hex digits
    kind: str
    options: dict[str, Any]  # the kind's own options, checked and with defaults filled in
    weights: str | None  # absolute path of the folder or file with the weights
    device: str  # "cpu", or for example "cuda:0,cuda:1" for two GPUs
    placement: tuple[str, ...] = ()  # the scheduler's names of these devices; logical devices have their own
    memory: int  # bytes reserved for this worker process on each of its devices
    limit: int | None = None  # bytes of main memory it may use, which may change later; None: no limit
    threads: int  # CPU threads it may compute with
    concurrency: int  # predictions it may run at a time
    cache: str  # absolute path of a folder for compile caches; kept between runs
    sleeps: bool = False  # the model may be put to sleep, if its runner supports it
    paths: tuple[str, ...] = ()  # absolute paths in ``options`` of files and folders that the model needs
    part: Part | None = None  # of a model on several machines; ``placement`` has only devices of this part
    python: str | None = None  # interpreter of the model's own environment; None: that of the appliance

    @property
    def sandboxed(self) -> bool:
        """Whether the model runs in a sandbox of its own, as Cog images do."""
        return self.kind == "cog" and "image" in self.options


class Runner(Protocol):
    """Runs one loaded model. All methods but ``interface`` run on the worker process's event loop."""

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Return the input and output schemas of a model. Runs in the gateway.

        ``options`` are the model's options with all defaults filled in.
        """
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

        A cancel arrives as ``asyncio.CancelledError``. Free what the prediction holds, then raise it again.

        Raises:
            PredictionFailed: its message becomes the prediction's ``error``.
        """
        ...

    async def close(self) -> None:
        """Stop child processes, before the worker process exits. After a timeout it is killed."""


@runtime_checkable
class Sleeper(Protocol):
    """A runner that can free device memory while its worker process keeps running.

    No prediction runs during ``sleep``, during ``wake``, or while the model sleeps. If ``sleep`` or ``wake``
    raises an exception, the worker process cannot be used any more.
    """

    @property
    def levels(self) -> tuple[int, ...]:
        """The supported sleep levels, known after ``setup``.

        Level 1 keeps the weights in main memory, level 2 drops them. Empty if sleeping would free nothing,
        for example on a CPU.
        """
        ...

    async def sleep(self, level: int) -> int | None:
        """Free device memory; return the bytes still allocated on each device, or None if unknown."""

    async def wake(self) -> None:
        """Restore the model to its state after ``setup``."""


@runtime_checkable
class ReportsMetrics(Protocol):
    """A runner whose inference engine reports metrics."""

    def take_metrics(self) -> EngineMetrics | None:
        """Return the measurements since the previous call; None if nothing has changed.

        Called after ``setup``, then every second, and when the last running prediction has ended.
        """
