"""Many open event streams and many queued predictions: errors, and memory for each."""

from __future__ import annotations

import asyncio
import resource
import tempfile
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scripts.benchmarks.memory import by_role
from scripts.benchmarks.servers import START_TIMEOUT
from tests.support.appliance_process import TOKEN, Appliance

STREAMS: Final = 1_000
QUEUED: Final = 5_000
_AT_ONCE: Final = 50  # requests under way
_PATIENCE: Final = 120.0  # seconds for a response or the first event of a stream
_CONFIG: Final = f"""
models:
  - {{name: test/stream, kind: echo, options: {{stream: true, concurrency: {STREAMS}}}}}
  - {{name: test/queue, kind: echo, options: {{concurrency: 1}}}}
limits: {{queue: {2 * QUEUED}, queue_per_model: {2 * QUEUED}, cancel_grace: 60s}}
"""


def measure(console: Console) -> dict[str, Any]:
    """Open the streams, then queue the predictions; count errors and measure memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="appliance-bench-") as folder:
        home = Path(folder)
        (home / "models.yaml").write_text(_CONFIG)
        running = Appliance(home, home / "models.yaml")
        running.start(START_TIMEOUT)
        try:
            found = asyncio.run(_measure(running, console))
        finally:
            running.stop()
    table = Table("", "number", "errors", "memory of the gateway for each", "of all processes")
    for name, one in found.items():
        gateway, everything = one["gateway"] / 1024, one["all"] / 1024
        table.add_row(
            name, f"{one['number']:,}", f"{one['errors']}", f"{gateway:.1f} KiB", f"{everything:.1f} KiB"
        )
    console.print(table)
    return found


async def _measure(running: Appliance, console: Console) -> dict[str, Any]:
    async with httpx.AsyncClient(
        base_url=running.url,
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=_PATIENCE,
        limits=httpx.Limits(max_connections=_AT_ONCE),
        trust_env=False,
    ) as client:
        for model in ("test/stream", "test/queue"):
            reply = await client.post(
                "/v1/predictions", json={"version": model, "input": {}}, headers={"Prefer": "wait"}
            )
            reply.raise_for_status()
        with Progress(console=console) as progress:
            before = _memory(running)
            words = {"text": "word ", "repeat": 1_000, "chunk_delay": 1.0}
            urls = await _create(client, "test/stream", words, STREAMS, progress)
            opened = progress.add_task("opening streams", total=STREAMS)
            streams = await asyncio.gather(
                *(_open(url, lambda: progress.advance(opened)) for url in urls), return_exceptions=True
            )
            during = _memory(running)
            open_streams = [stream for stream in streams if isinstance(stream, asyncio.StreamWriter)]
            waits = {"delay": 100_000.0}
            queued = await _create(client, "test/queue", waits, QUEUED, progress)
            after = _memory(running)
        (await client.get("/v1/predictions")).raise_for_status()
        for writer in open_streams:
            writer.close()
    return {
        "open streams": _report(before, during, STREAMS, STREAMS - len(open_streams)),
        "queued predictions": _report(during, after, QUEUED, QUEUED - len(queued)),
    }


def _memory(running: Appliance) -> dict[str, int]:
    roles = by_role(running)
    return {"gateway": roles["gateway"], "all": sum(roles.values())}


def _report(before: dict[str, int], after: dict[str, int], number: int, errors: int) -> dict[str, Any]:
    each = {name: (after[name] - before[name]) / number for name in before}
    return {"number": number, "errors": errors, **each}  # bytes


async def _create(
    client: httpx.AsyncClient, model: str, input: dict[str, Any], count: int, progress: Progress
) -> list[str]:
    """Create predictions; return the URLs of the streams of those that were accepted."""
    task = progress.add_task(f"creating predictions of {model}", total=count)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def create() -> str | None:
        async with slots:
            reply = await client.post("/v1/predictions", json={"version": model, "input": input})
        progress.advance(task)
        return str(reply.json()["urls"]["stream"]) if reply.status_code == 201 else None

    urls = await asyncio.gather(*(create() for _ in range(count)))
    return [url for url in urls if url is not None]


async def _open(url: str, opened: Any) -> asyncio.StreamWriter:
    """Open an event stream and return its connection after the first output."""
    parts = urlsplit(url)
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Accept: text/event-stream", "", ""]
        writer.write("\r\n".join(lines).encode())
        await reader.readuntil(b"event: output")
    opened()
    return writer
