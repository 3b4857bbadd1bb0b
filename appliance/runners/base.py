"""The interfaces between a model kind and the appliance.

A runner lives in a worker process, one process for each loaded model. It is created by ``Runner(spec)``,
loads the model in ``setup()``, and then runs up to ``spec.concurrency`` predictions at a time until the
process ends. ``interface`` is called in the gateway, so a runner's module must import nothing heavy at its
top.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a model kind that the appliance needs without importing the kind's libraries."""

    name: str  # `kind` in models.yaml
    runner: str  # "module:Class", imported on first use
    model: str | None = None  # "module:Class" of its models in models.yaml; None for a trainer
    trainer: str | None = None  # the kind of runner that trains new versions of the kind's models
    preload: tuple[str, ...] = ()  # modules that the zygote imports before it forks worker processes
    preload_on_cpu: tuple[str, ...] = ()  # additional ones on machines without a GPU
    libraries: tuple[str, ...] = ()  # packages that the runner imports; `appliance doctor` checks them
    operations: frozenset[str] = frozenset()  # constants of `operations` that the runner answers


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker process needs to load one model; travels as JSON or msgpack."""

    model: str  # owner/name
    version: str  # 64 hex digits; part of the identity of what is loaded
    kind: str
    options: dict[str, Any]  # the kind's own options, checked and with defaults filled in
    weights: str | None  # absolute path of the folder or file with the weights
    device: str  # "cpu", or "cuda:0,cuda:1" when several are used together
    placement: tuple[str, ...] = ()  # the same by the names of the ledger, logical devices included
    memory: int  # bytes reserved for this worker process on each of its devices
    limit: int | None = None  # bytes of main memory it may use, which may change later; None: no limit
    threads: int  # CPU threads it may compute with
    concurrency: int  # predictions it may run at a time
    cache: str  # absolute path of a folder for compile caches; kept between runs
    sleeps: bool = False  # the model may be put to sleep, if its runner supports it


class Runner(Protocol):
    """One loaded model. All methods run on the worker process's event loop."""

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Return the inputs and the output of a model with these options, which are complete.

        Called in the gateway.
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
        """Stop child processes before the worker process exits; it is killed if this takes long."""


@runtime_checkable
class Sleeper(Protocol):
    """A runner whose model can free its device and keep its process.

    No prediction runs when ``sleep`` or ``wake`` is called, nor while the model sleeps. An exception that one
    of them raises means that the worker process can no longer be used.
    """

    @property
    def levels(self) -> tuple[int, ...]:
        """Sleep levels that the model supports after ``setup``: 1 keeps weights in main memory, 2 drops them.

        Empty if sleep would free nothing, for example because the device is main memory.
        """
        ...

    async def sleep(self, level: int) -> int | None:
        """Free the device; return the bytes that the model still holds on each device, None if unknown."""

    async def wake(self) -> None:
        """Make the model as ready as after ``setup``."""
