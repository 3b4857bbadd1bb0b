"""The runner of kind `echo`: returns its input, and fails on demand; for tests and for measuring overhead."""

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
from typing import Any, Final

from appliance.domain.errors import PredictionFailed
from appliance.domain.interface import Interface
from appliance.domain.prediction import Job, Log, Metric, Output
from appliance.domain.values import MIB
from appliance.runners import progress
from appliance.runners.base import LoadSpec
from appliance.runners.interfaces import FILE, interface_of
from appliance.runners.schemas import boolean, integer, number, string

_WORDS: Final = re.compile(r"\S+\s*|\s+")
_PATTERN: Final = bytes(range(256)) * 256  # the content of the weights

_INPUTS: Final[dict[str, dict[str, Any]]] = {
    "text": string("Text to return", default="hello"),
    "repeat": integer("How often to return the text, or files to make", default=1, ge=1, le=1_000_000),
    "delay": number("Seconds before the first output", default=0, ge=0),
    "chunk_delay": number("Seconds between streamed words", default=0, ge=0),
    "print": string("Text to print to the logs"),
    "progress": integer("Steps of a progress bar to draw in the logs", default=0, ge=0, le=10_000),
    "after": integer("Streamed words to send before any of the faults below", default=0, ge=0),
    "fail": string("Fail with this error"),
    "crash": boolean("Kill the worker process with SIGKILL", default=False),
    "exit_code": integer("End the worker process with this exit code", ge=0, le=255),
    "hang": number("Seconds to block the worker process, which then ignores cancels too", default=0, ge=0),
    "ignore_cancel": number("Seconds to continue after a cancel", default=0, ge=0),
    "file": {**FILE, "description": "File to return, if the model returns files"},
    "files": {"type": "array", "items": FILE, "description": "Further files to return"},
    "memory": integer("Main memory to hold during the prediction, in MiB", default=0, ge=0, le=65_536),
}


class EchoRunner:
    """Runs models of kind `echo`; the options are those of ``EchoOptions``."""

    def __init__(self, spec: LoadSpec) -> None:
        self._startup_delay = float(spec.options.get("startup_delay", 0.0))
        self._stream = bool(spec.options.get("stream", False))
        self._files = bool(spec.options.get("files", False))
        self._size = int(spec.options.get("weights") or 0)
        self._residue = int(spec.options.get("residue") or 0)
        self._sleep_delay = float(spec.options.get("sleep_delay", 0.0))
        self._weights: mmap.mmap | None = None  # stands for device memory: closing it frees it at once
        self._kept = b""  # the weights in main memory while the model sleeps
        self._left: mmap.mmap | None = None  # the part of the weights that sleeping does not free

    @staticmethod
    def interface(options: Mapping[str, Any]) -> Interface:
        output: dict[str, Any] = {"type": "string"}
        stream, files = options.get("stream", False), options.get("files", False)
        if stream or files:
            output = {"type": "array", "items": FILE if files else output}
        if stream:
            output["x-cog-array-type"] = "iterator"
        if stream and not files:
            output["x-cog-array-display"] = "concatenate"
        return interface_of(_INPUTS, output)

    async def setup(self) -> None:
        await asyncio.sleep(self._startup_delay)
        self._weights = self._read()

    async def run(self, job: Job) -> AsyncIterator[Log | Output | Metric]:
        defaults: dict[str, Any] = {name: schema.get("default") for name, schema in _INPUTS.items()}
        input = defaults | job.input
        held = bytearray(input["memory"] * MIB)
        held[::4096] = b"\1" * len(held[::4096])  # memory takes no space until it is written to
        try:
            await self._prepare(input)
            folder = Path(job.folder)
            async for output in self._output_files(input, folder) if self._files else self._texts(input):
                yield output
        except asyncio.CancelledError:
            if input["ignore_cancel"]:
                await asyncio.sleep(input["ignore_cancel"])
            raise

    @property
    def levels(self) -> tuple[int, ...]:
        return (1, 2) if self._size else ()

    async def sleep(self, level: int) -> int:
        await asyncio.sleep(self._sleep_delay)
        assert self._weights is not None
        self._kept = self._weights[:] if level == 1 else b""
        self._left = _memory(self._weights[: self._residue]) if self._residue else None
        self._weights.close()
        self._weights = None
        return 0 if self._left is None else len(self._left)

    async def wake(self) -> None:
        await asyncio.sleep(self._sleep_delay)
        self._weights = _memory(self._kept) if self._kept else self._read()
        self._kept, self._left = b"", None

    def _read(self) -> mmap.mmap | None:
        pattern = _PATTERN * (self._size // len(_PATTERN) + 1)
        return _memory(pattern[: self._size]) if self._size else None

    async def close(self) -> None:
        """Do nothing: the memory is freed when the process ends."""

    async def _prepare(self, input: dict[str, Any]) -> None:
        if input["print"] is not None:
            print(input["print"])
        steps = input["progress"]
        for step in range(1, steps + 1):
            sys.stderr.write(f"\r{progress.bar(step, steps)}" + ("\n" if step == steps else ""))
            await asyncio.sleep(0)
        if input["delay"]:
            await asyncio.sleep(input["delay"])

    async def _texts(self, input: dict[str, Any]) -> AsyncIterator[Output]:
        text = input["text"] * input["repeat"]
        words = _WORDS.findall(text) if self._stream else []
        for index, word in enumerate(words):
            if index:
                await asyncio.sleep(input["chunk_delay"])
            if index == input["after"]:
                _misbehave(input)
            yield Output([word])
        if input["after"] >= len(words):
            _misbehave(input)
        if not self._stream:
            yield Output([text], append=False)

    async def _output_files(self, input: dict[str, Any], folder: Path) -> AsyncIterator[Output]:
        """Yield copies of the input files or, without any, files with the input's text."""
        paths = [Path(path) for path in (input["file"], *(input["files"] or ())) if path is not None]
        folder.mkdir(parents=True, exist_ok=True)
        made = [Path(shutil.copy(path, folder / f"{index}-{path.name}")) for index, path in enumerate(paths)]
        if not made:
            made = [folder / f"{index}.txt" for index in range(input["repeat"])]
            for path in made:
                path.write_text(input["text"])
        for index, path in enumerate(made):
            if index == input["after"]:
                _misbehave(input)
            if self._stream:
                await asyncio.sleep(input["chunk_delay"])
                yield Output([path])
        if input["after"] >= len(made):
            _misbehave(input)
        if not self._stream:
            yield Output([made], append=False)


def _memory(content: bytes) -> mmap.mmap:
    """Copy ``content`` to an anonymous mmap; closing it returns its memory to the system."""
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


def _misbehave(input: dict[str, Any]) -> None:
    if input["hang"]:
        time.sleep(input["hang"])
    if input["crash"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if input["exit_code"] is not None:
        os._exit(input["exit_code"])
    if input["fail"] is not None:
        raise PredictionFailed(input["fail"])
