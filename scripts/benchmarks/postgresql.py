"""The store on a PostgreSQL server of this machine, compared with SQLite, in turns."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from appliance.domain.prediction import Prediction, Status, new_id, new_stream_token
from appliance.store import Store
from tests.support import postgres_server

ROUNDS: Final = 5
_SERIAL: Final = 50  # repetitions of an operation that runs alone
_MANY: Final = 1000  # predictions that are stored at the same time


def measure(console: Console, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the median durations in microseconds on both databases, and the ratios of each round.

    Both wait for the disk at each commit.
    """
    with (
        tempfile.TemporaryDirectory(prefix="appliance-bench-") as folder,
        postgres_server.running(durable=True) as server,
    ):
        found = asyncio.run(_rounds(Path(folder) / "appliance.db", server.url(), rounds))
    table = Table("operation", "SQLite", "PostgreSQL", "ratio", title="median of the store, microseconds")
    report: dict[str, Any] = {}
    for name, (sqlite, postgres) in found.items():
        ratios = [after / before for before, after in zip(sqlite, postgres, strict=True)]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        shown = [statistics.median(each) for each in (sqlite, postgres)]
        table.add_row(name, f"{shown[0]:.0f}", f"{shown[1]:.0f}", f"{middle:.2f} ({low:.2f} to {high:.2f})")
        report[name] = {"sqlite": sqlite, "postgresql": postgres, "ratios": ratios}
    console.print(table)
    return report


async def _rounds(path: Path, url: str, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    stores = [Store(path), Store(path, url=url)]
    for store in stores:
        await store.open()
        await store.own()
    found: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(rounds):
        for number, store in enumerate(stores):
            for name, took in (await _measure(store)).items():
                found.setdefault(name, ([], []))[number].append(took)
    for store in stores:
        await store.close()
    return found


async def _measure(store: Store) -> dict[str, float]:
    known = _new()
    await store.create(known)

    async def run() -> None:
        record = _new()
        await store.create(record)
        record = record.started(time.time(), 0.0, "cpu")
        await store.claim(record)
        await store.finish(record.finished(Status.SUCCEEDED, time.time()))

    async def many(write: Callable[[], Awaitable[object]]) -> None:
        await asyncio.gather(*(write() for _ in range(_MANY)))

    async def ended() -> None:
        await store.create(_new().started(1.0, 0.0, "cpu").finished(Status.SUCCEEDED, 2.0))

    alone: dict[str, Callable[[], Awaitable[object]]] = {
        "create a prediction, and commit": lambda: store.create(_new()),
        "create, start and end a prediction": run,
        "store an ended prediction": ended,
        "get a prediction": lambda: store.get(known.id),
        "first page of a list": lambda: store.list("me"),
    }
    found = {}
    for name, operation in alone.items():
        times = []
        for _ in range(_SERIAL):
            began = time.perf_counter()
            await operation()
            times.append(time.perf_counter() - began)
        found[name] = statistics.median(times) * 1e6
    for name, operation in (("create, start and end", run), ("store ended predictions", ended)):
        began = time.perf_counter()
        await many(operation)
        found[f"{name}: {_MANY:,} at once, each"] = (time.perf_counter() - began) / _MANY * 1e6
    return found


def _new() -> Prediction:
    return Prediction(
        id=new_id(),
        model="appliance/echo",
        version="0" * 64,
        owner="me",
        input={"text": "hello"},
        created_at=time.time(),
        stream_token=new_stream_token(),
    )
