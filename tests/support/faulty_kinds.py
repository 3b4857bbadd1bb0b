"""Model kinds that fail in several ways; worker processes know them if their zygote preloads this module."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import ClassVar

from appliance.domain.errors import LoadFailed
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners import KINDS
from appliance.runners.base import Kind, LoadSpec


class FamilyRunner:
    """Has a child process with its id in ``<cache>/child``; ``close`` creates ``<cache>/closed``."""

    kind: ClassVar[str] = "family"

    def __init__(self, spec: LoadSpec) -> None:
        self._folder = Path(spec.cache)

    async def setup(self) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        (self._folder / "child").write_text(str(child.pid))

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        await asyncio.sleep(1000)
        yield Output([])

    async def close(self) -> None:
        (self._folder / "closed").touch()


class RefusingRunner(FamilyRunner):
    """Its load fails with ``LoadFailed``."""

    kind: ClassVar[str] = "refusing"

    async def setup(self) -> None:
        print("looking for weights")
        raise LoadFailed("there are no weights at /nowhere; pull them first")


class BrokenRunner(FamilyRunner):
    """Its load fails with an unexpected exception."""

    kind: ClassVar[str] = "broken"

    async def setup(self) -> None:
        raise ZeroDivisionError("division by zero")


class SlowRunner(FamilyRunner):
    """Takes for ever to load."""

    kind: ClassVar[str] = "slow"

    async def setup(self) -> None:
        await super().setup()
        await asyncio.sleep(1000)


class HungryRunner(FamilyRunner):
    """Takes 200 MiB, and then for ever to load."""

    kind: ClassVar[str] = "hungry"

    async def setup(self) -> None:
        self._held = b"\1" * (200 << 20)
        await asyncio.sleep(1000)


class OutOfMemoryError(RuntimeError):
    """Torch's class of this name, as far as a worker process can see."""

    __module__ = "torch"


class UntidyRunner(FamilyRunner):
    """Has a temporary file, a socket and shared memory, whose paths are in ``<cache>/left``."""

    kind: ClassVar[str] = "untidy"

    async def setup(self) -> None:
        descriptor, file = tempfile.mkstemp()
        os.close(descriptor)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(Path(tempfile.gettempdir()) / "0123456789"))
        self._held = SharedMemory(create=True, size=4096), listener
        shared = f"/dev/shm/{self._held[0].name}"
        (self._folder / "left").write_text("\n".join((file, listener.getsockname(), shared)))


class FullRunner(FamilyRunner):
    """Finds no memory on its device: while it loads, or with the option ``loads`` when it runs."""

    kind: ClassVar[str] = "full"

    def __init__(self, spec: LoadSpec) -> None:
        super().__init__(spec)
        self._loads = bool(spec.options["loads"])

    async def setup(self) -> None:
        if not self._loads:
            try:
                self._allocate()
            except OutOfMemoryError as error:
                raise LoadFailed(f"the weights could not be loaded: {error}") from error

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        yield Log("begun")
        self._allocate()

    def _allocate(self) -> None:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has less")


for runner in (
    FamilyRunner,
    RefusingRunner,
    BrokenRunner,
    SlowRunner,
    HungryRunner,
    UntidyRunner,
    FullRunner,
):
    KINDS[runner.kind] = Kind(name=runner.kind, runner=f"{__name__}:{runner.__name__}")
