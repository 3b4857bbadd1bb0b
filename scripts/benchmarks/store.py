"""The database with few and with many predictions: start, get, list, filters and usage."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from appliance.domain.prediction import Prediction, Status, new_id, new_stream_token
from appliance.store import Cursor, Store, rows
from appliance.store.database import connect
from appliance.store.queries import QUERIES
from appliance.store.unindexed import move_all

FEW: Final = 1_000
MANY: Final = 1_000_000
ROUNDS: Final = 30
_BATCH: Final = 10_000  # predictions in one transaction
_FIRST: Final = 1_700_000_000.0  # Unix time of the oldest prediction; one follows each second
_RARE: Final = 100  # predictions of the rare model, token and account, which have failed


def measure(console: Console) -> dict[str, Any]:
    """Return the median duration of each operation in microseconds, by the number of predictions."""
    found: dict[int, dict[str, float]] = {}
    for count in (FEW, MANY):
        with tempfile.TemporaryDirectory(prefix="appliance-bench-") as folder:
            path = Path(folder) / "appliance.db"
            asyncio.run(_create(path))
            _fill(path, count, console)
            found[count] = asyncio.run(_measure(path, count))
    table = Table(
        "operation", f"{FEW:,} predictions", f"{MANY:,}", "ratio", title="median of the store, microseconds"
    )
    for name, few in found[FEW].items():
        many = found[MANY][name]
        table.add_row(name, f"{few:.0f}", f"{many:.0f}", f"{many / few:.2f}")
    console.print(table)
    return {
        "microseconds": {str(count): values for count, values in found.items()},
        "ratios": {name: found[MANY][name] / few for name, few in found[FEW].items()},
    }


async def _create(path: Path) -> None:
    store = Store(path, durability="normal")
    await store.open()
    await store.close()


def _fill(path: Path, count: int, console: Console) -> None:
    connection = connect(path, "normal")
    insert = QUERIES["insert_unindexed_prediction"]
    text = f"writing {count:,} predictions"
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -400000")  # KiB
    for first in track(range(0, count, _BATCH), description=text, console=console):
        connection.execute("BEGIN IMMEDIATE")
        records = _predictions(first, min(first + _BATCH, count), count // _RARE)
        connection.executemany(insert, map(rows.unindexed_prediction, records))
        move_all(connection)
        connection.execute("COMMIT")
    connection.close()


def _predictions(first: int, end: int, rare_each: int) -> Iterator[Prediction]:
    for number in range(first, end):
        rare = number % rare_each == 0
        created = _FIRST + number
        yield Prediction(
            id=new_id(),
            model="appliance/rare" if rare else "appliance/echo",
            version="0" * 64,
            owner="someone" if rare else "me",
            input={"text": "hello"},
            status=Status.FAILED if rare else Status.SUCCEEDED,
            output=None if rare else "hello",
            error="it failed" if rare else None,
            created_at=created,
            started_at=created,
            completed_at=created + 0.001,
            stream_token=new_stream_token(),
            attempt=1,
            token="rare" if rare else "usual",
        )


async def _measure(path: Path, count: int) -> dict[str, float]:
    began = time.perf_counter()
    store = Store(path, durability="normal")
    await store.open()
    await store.unfinished()
    found = {"open, and find what is unfinished": (time.perf_counter() - began) * 1e6}
    middle = (await store.list("me", cursor=Cursor(_FIRST + count / 2, "z", backwards=False), limit=1))[0]
    half = Cursor(middle.created_at, middle.id, backwards=False)
    operations: dict[str, Callable[[], Awaitable[Any]]] = {
        "get": lambda: store.get(middle.id),
        "first page of an account": lambda: store.list("me"),
        "page in the middle": lambda: store.list("me", cursor=half),
        "first page of all accounts": lambda: store.list(None),
        "filtered by a usual model": lambda: store.list("me", model="appliance/echo"),
        "filtered by a rare model": lambda: store.list(None, model="appliance/rare"),
        "filtered by a rare token": lambda: store.list(None, token="rare"),  # noqa: S106 - an id
        "filtered by a rare status": lambda: store.list(None, status=Status.FAILED),
        "filtered, without results": lambda: store.list("me", status=Status.ABORTED),
        "usage by model": lambda: store.usage.rows(["model"]),
        "create and commit": lambda: store.create(_new()),
    }
    for name, operation in operations.items():
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            await operation()
            times.append(time.perf_counter() - began)
        found[name] = statistics.median(times) * 1e6
    await store.close()
    return found


def _new() -> Prediction:
    (record,) = _predictions(1, 2, _RARE)
    return msgspec.structs.replace(record, created_at=time.time())
