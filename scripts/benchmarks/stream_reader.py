"""Many event streams, read in a process of its own that records when each piece of data arrived.

Run as ``python -m scripts.benchmarks.stream_reader`` with a plan on stdin; prints the result as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
import time
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx
import msgspec
import uvloop

from tests.support.appliance_process import ROOT

_AT_ONCE: Final = 32  # requests that create predictions, at the same time
_SETTLE: Final = 1.0  # seconds to wait before and after the measurement
_TOKENS: Final = re.compile(rb"data: ([0-9 ]+)\n")


class Plan(msgspec.Struct, frozen=True):
    """Streams of predictions whose output are the times at which their tokens were emitted."""

    url: str  # of the appliance
    headers: dict[str, str]
    model: str
    input: dict[str, Any]
    streams: int
    seconds: float


class Delays(msgspec.Struct, frozen=True):
    """The delay of every token that was emitted during the measurement."""

    nanoseconds: list[int]
    seconds: float
    ended: int  # streams that ended before the measurement did


class _Reader(asyncio.Protocol):
    """Reads one stream; parsing waits until the end, because it would delay the other streams."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self.reads: list[tuple[int, bytes]] = []
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False

    async def open(self) -> None:
        """Open the stream and return after its first output."""
        loop = asyncio.get_running_loop()
        host, _, port = self._url.netloc.partition(":")
        await loop.create_connection(lambda: self, host, int(port))
        await self.begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        lines = [f"GET {self._url.path} HTTP/1.1", f"Host: {self._url.netloc}", "", ""]
        cast("asyncio.Transport", transport).write("\r\n".join(lines).encode())

    def data_received(self, data: bytes) -> None:
        self.reads.append((time.monotonic_ns(), data))
        if not self.begun.done() and b"event: output" in data:
            self.begun.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        self.closed = True


def measure(plan: Plan) -> Delays:
    """Carry out a plan in another process."""
    ran = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.stream_reader"],
        input=msgspec.json.encode(plan),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
    )
    return msgspec.json.decode(ran.stdout, type=Delays)


def delays(reads: list[tuple[int, bytes]], begin: int, end: int) -> list[int]:
    """Return how long the tokens that were emitted from ``begin`` to ``end`` took to arrive.

    ``reads`` are the times and the data of the reads of one stream. A token has arrived with its last byte.
    """
    data = b"".join(part for _, part in reads)
    ends, at = [], 0
    for _, part in reads:
        at += len(part)
        ends.append(at)
    found, read = [], 0
    for match in _TOKENS.finditer(data):
        while ends[read] < match.end():
            read += 1
        emitted = (int(token) for token in match[1].split())
        found += [reads[read][0] - token for token in emitted if begin <= token < end]
    return found


async def _create(plan: Plan) -> list[str]:
    slots = asyncio.Semaphore(_AT_ONCE)
    async with httpx.AsyncClient(
        base_url=plan.url, headers=plan.headers, timeout=60, trust_env=False
    ) as client:

        async def create() -> str:
            async with slots:
                reply = await client.post(f"/v1/models/{plan.model}/predictions", json={"input": plan.input})
            reply.raise_for_status()
            return str(reply.json()["urls"]["stream"])

        return await asyncio.gather(*(create() for _ in range(plan.streams)))


async def _run(plan: Plan) -> Delays:
    readers = [_Reader(url) for url in await _create(plan)]
    await asyncio.gather(*(reader.open() for reader in readers))
    gc.disable()
    await asyncio.sleep(_SETTLE)
    begin = time.monotonic_ns()
    await asyncio.sleep(plan.seconds)
    end = time.monotonic_ns()
    await asyncio.sleep(_SETTLE)
    found = [delay for reader in readers for delay in delays(reader.reads, begin, end)]
    return Delays(found, (end - begin) / 1e9, sum(reader.closed for reader in readers))


def main() -> None:
    """Read a plan, carry it out, print the result."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    result = msgspec.json.encode(uvloop.run(_run(plan)))
    sys.stdout.buffer.write(result)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
