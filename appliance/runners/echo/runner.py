"""The echo runner: says back its text, and misbehaves on demand. For tests and for measuring overhead."""

from __future__ import annotations

import asyncio
import mmap
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from appliance.domain.errors import PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.runners.base import LoadSpec

_PIECES: Final = re.compile(r"\S+\s*|\s+")
_MEBIBYTE: Final = 1024 * 1024
_PATTERN: Final = bytes(range(256)) * 256  # what its weights are

_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "text": {"type": "string", "default": "hello", "description": "Text to say back"},
    "repeat": {
        "type": "integer",
        "default": 1,
        "minimum": 1,
        "maximum": 1_000_000,
        "description": "How many times to say it",
    },
    "delay": {"type": "number", "default": 0, "minimum": 0, "description": "Seconds before the first output"},
    "chunk_delay": {
        "type": "number",
        "default": 0,
        "minimum": 0,
        "description": "Seconds between streamed words",
    },
    "print": {"type": "string", "description": "Text to print, which ends in the logs"},
    "progress": {
        "type": "integer",
        "default": 0,
        "minimum": 0,
        "maximum": 10_000,
        "description": "Steps of a progress bar to draw in the logs",
    },
    "after": {
        "type": "integer",
        "default": 0,
        "minimum": 0,
        "description": "Streamed words to send before any of the faults below",
    },
    "fail": {"type": "string", "description": "Fail with this error"},
    "crash": {"type": "boolean", "default": False, "description": "Kill the engine host with SIGKILL"},
    "exit_code": {
        "type": "integer",
        "minimum": 0,
        "maximum": 255,
        "description": "End the engine host with this exit code",
    },
    "hang": {
        "type": "number",
        "default": 0,
        "minimum": 0,
        "description": "Seconds to block the whole engine host, which then does not even answer a cancel",
    },
    "ignore_cancel": {
        "type": "number",
        "default": 0,
        "minimum": 0,
        "description": "Seconds to go on after a cancel",
    },
    "file": {"type": "string", "format": "uri", "description": "File to give back, if it gives files"},
    "files": {
        "type": "array",
        "items": {"type": "string", "format": "uri"},
        "description": "Further files to give back",
    },
    "memory": {
        "type": "integer",
        "default": 0,
        "minimum": 0,
        "maximum": 65_536,
        "description": "MiB of main memory to hold while it runs",
    },
}


class EchoRunner:
    """Options: ``startup_delay`` seconds in ``setup``; ``stream``, whether output comes piece by piece;
    ``files``, whether it is files; ``weights``, bytes that it holds in memory of their own while it is awake,
    ``residue``, how many of them it does not give back when it sleeps, and ``sleep_delay``, the seconds that
    falling asleep and waking take.
    """

    kind: ClassVar[str] = "echo"

    def __init__(self, spec: LoadSpec) -> None:
        self._startup_delay = float(spec.options.get("startup_delay", 0.0))
        self._stream = bool(spec.options.get("stream", False))
        self._files = bool(spec.options.get("files", False))
        self._size = int(spec.options.get("weights") or 0)
        self._residue = int(spec.options.get("residue") or 0)
        self._sleep_delay = float(spec.options.get("sleep_delay", 0.0))
        self._weights: mmap.mmap | None = None  # as if on a device: memory that goes when it is closed
        self._kept = b""  # the same in main memory, while it sleeps
        self._left: mmap.mmap | None = None  # what it does not give back

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        """Inputs and output of an echo model with these options."""
        properties = {
            name: {**schema, "title": name.replace("_", " ").title(), "x-order": order}
            for order, (name, schema) in enumerate(_INPUTS.items())
        }
        output: dict[str, Any] = {"type": "string", "title": "Output"}
        if options.get("files", False):
            file = {"type": "string", "format": "uri"}
            output = {"type": "array", "title": "Output", "items": file}
            if options.get("stream", False):
                output["x-cog-array-type"] = "iterator"
        elif options.get("stream", False):
            output = {
                "type": "array",
                "title": "Output",
                "items": {"type": "string"},
                "x-cog-array-type": "iterator",
                "x-cog-array-display": "concatenate",
            }
        return Interface(input={"type": "object", "title": "Input", "properties": properties}, output=output)

    async def setup(self) -> None:
        """Load the model."""
        await asyncio.sleep(self._startup_delay)
        self._weights = self._read()

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        """Run one prediction."""
        defaults: dict[str, Any] = {name: schema.get("default") for name, schema in _INPUTS.items()}
        asked = defaults | job.input
        held = bytearray(asked["memory"] * _MEBIBYTE)
        held[::4096] = b"\1" * len(held[::4096])  # memory that is not written to is not used
        try:
            await self._prepare(asked)
            folder = Path(job.folder)
            async for output in self._files_of(asked, folder) if self._files else self._outputs(asked):
                yield output
        except asyncio.CancelledError:
            if asked["ignore_cancel"]:
                await asyncio.sleep(asked["ignore_cancel"])
            raise

    @property
    def levels(self) -> tuple[int, ...]:
        """Sleep levels that this model supports; empty without the option ``weights``."""
        return (1, 2) if self._size else ()

    @property
    def weights(self) -> bytes:
        """Memory that the model holds on its device."""
        return b"" if self._weights is None else self._weights[:]

    @property
    def kept(self) -> bytes:
        """Memory that the model holds in main memory while it sleeps."""
        return self._kept

    async def sleep(self, level: int) -> int:
        """Move the weights to main memory and free the device."""
        await asyncio.sleep(self._sleep_delay)
        assert self._weights is not None
        self._kept = self._weights[:] if level == 1 else b""
        self._left = _memory(self._weights[: self._residue]) if self._residue else None
        self._weights.close()
        self._weights = None
        return 0 if self._left is None else len(self._left)

    async def wake(self) -> None:
        """Move the weights back to the device."""
        await asyncio.sleep(self._sleep_delay)
        self._weights = _memory(self._kept) if self._kept else self._read()
        self._kept, self._left = b"", None

    def _read(self) -> mmap.mmap | None:
        """The weights, as they always are."""
        return _memory(_PATTERN * (self._size // len(_PATTERN) + 1), self._size) if self._size else None

    async def close(self) -> None:
        """Do nothing: the process ends and frees everything."""

    async def _prepare(self, asked: dict[str, Any]) -> None:
        if asked["print"] is not None:
            print(asked["print"])
        for step in range(1, asked["progress"] + 1):
            _draw(step, asked["progress"])
            await asyncio.sleep(0)
        if asked["delay"]:
            await asyncio.sleep(asked["delay"])

    async def _outputs(self, asked: dict[str, Any]) -> AsyncIterator[Output]:
        text = asked["text"] * asked["repeat"]
        pieces = _PIECES.findall(text) if self._stream else []
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(asked["chunk_delay"])
            if number == asked["after"]:
                _misbehave(asked)
            yield Output([piece])
        if asked["after"] >= len(pieces):
            _misbehave(asked)
        if not self._stream:
            yield Output([text], append=False)

    async def _files_of(self, asked: dict[str, Any], folder: Path) -> AsyncIterator[Output]:
        """The files it was given, or one with its text."""
        paths = [Path(path) for path in (asked["file"], *(asked["files"] or ())) if path is not None]
        folder.mkdir(parents=True, exist_ok=True)
        made = [
            Path(shutil.copy(path, folder / f"{number}-{path.name}")) for number, path in enumerate(paths)
        ]
        if not made:
            made = [folder / f"{number}.txt" for number in range(asked["repeat"])]
            for path in made:
                path.write_text(asked["text"])
        for number, path in enumerate(made):
            if number == asked["after"]:
                _misbehave(asked)
            if self._stream:
                await asyncio.sleep(asked["chunk_delay"])
                yield Output([path])
        if asked["after"] >= len(made):
            _misbehave(asked)
        if not self._stream:
            yield Output([made], append=False)


def _memory(content: bytes, size: int | None = None) -> mmap.mmap:
    """The first ``size`` bytes of ``content``, default all, in memory of their own."""
    size = len(content) if size is None else size
    memory = mmap.mmap(-1, size)
    memory[:] = content[:size]
    return memory


def _draw(step: int, steps: int) -> None:
    """A progress bar as tqdm draws it."""
    share = step / steps
    bar = "#" * int(10 * share)
    sys.stderr.write(f"\r{100 * share:3.0f}%|{bar:<10}| {step}/{steps}" + ("\n" if step == steps else ""))


def _misbehave(asked: dict[str, Any]) -> None:
    if asked["hang"]:
        time.sleep(asked["hang"])
    if asked["crash"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if asked["exit_code"] is not None:
        os._exit(asked["exit_code"])
    if asked["fail"] is not None:
        raise PredictionFailed(asked["fail"])
