"""Load generator in a process of its own, the same for every server.

Run as ``python -m scripts.benchmarks.load`` with a plan on stdin; prints what it measured as JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Final
from urllib.parse import urlsplit

import msgspec
import uvloop

from scripts.benchmarks.statistic import quantile
from tests.support.appliance_process import ROOT

#: Cog's server refuses what comes before the slot of the last prediction is free again.
_BUSY: Final = 409


class Plan(msgspec.Struct, frozen=True):
    """One POST, sent again and again over kept connections."""

    url: str
    body: str
    headers: dict[str, str]
    clients: int
    seconds: float
    moments: bool = False  # return the times of each request, which makes sense with one client only


class Measured(msgspec.Struct, frozen=True):
    """What came of a plan."""

    rate: float  # answers a second
    p50: float  # seconds
    p99: float  # seconds
    #: Nanoseconds by the monotonic clock at which each request was sent and its response was read.
    moments: list[tuple[int, int]] = []


def measure(plan: Plan) -> Measured:
    """Carry out a plan in another process."""
    ran = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.load"],
        input=msgspec.json.encode(plan),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
    )
    return msgspec.json.decode(ran.stdout, type=Measured)


async def _client(plan: Plan, request: bytes, until: float, times: list[tuple[int, int]]) -> None:
    address = urlsplit(plan.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    while (began := time.monotonic_ns()) < until:
        while await _post(plan, request, reader, writer) == _BUSY:
            pass  # the answer that counts is the one with the prediction
        times.append((began, time.monotonic_ns()))
    writer.close()


async def _post(
    plan: Plan, request: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> int:
    """The status of one answer, which is read to its end."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    lowered = head.lower()
    at = lowered.find(b"content-length:")
    if status not in {200, 201, _BUSY} or at < 0:
        raise SystemExit(f"{plan.url} answered {head.decode(errors='replace')}")
    await reader.readexactly(int(lowered[at + 15 : lowered.index(b"\r\n", at)]))
    return status


async def _run(plan: Plan) -> Measured:
    address = urlsplit(plan.url)
    headers = {"Host": address.netloc, "Content-Type": "application/json", **plan.headers}
    body = plan.body.encode()
    lines = [f"POST {address.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
    warm: list[tuple[int, int]] = []
    until = time.monotonic_ns() + 1e9
    await asyncio.gather(*(_client(plan, request, until, warm) for _ in range(plan.clients)))
    moments: list[tuple[int, int]] = []
    began = time.monotonic_ns()
    until = began + plan.seconds * 1e9
    await asyncio.gather(*(_client(plan, request, until, moments) for _ in range(plan.clients)))
    took = (time.monotonic_ns() - began) / 1e9
    times = [(end - begin) / 1e9 for begin, end in moments]
    return Measured(
        len(times) / took,
        quantile(times, 0.5),
        quantile(times, 0.99),
        sorted(moments) if plan.moments else [],
    )


def main() -> None:
    """Read a plan, carry it out, print the result."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    print(json.dumps(msgspec.to_builtins(uvloop.run(_run(plan)))))


if __name__ == "__main__":
    main()
