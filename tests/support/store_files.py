"""A store on a real file, or on a PostgreSQL server."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.domain.prediction import Prediction, new_id, new_stream_token
from appliance.store import Store
from appliance.store.postgres_connection import PostgresConnection
from tests.support.postgres_databases import Databases

_empty: list[bytes] = []  # an empty database, once this process has made one
_pools: list[Databases] = []  # the databases of the server on which stores are made now; none for SQLite
_made: dict[Path, str] = {}  # path -> database on that server


@contextlib.contextmanager
def on_server(databases: Databases) -> Iterator[None]:
    """Make stores on a server: one database for each path."""
    _pools.append(databases)
    try:
        yield
    finally:
        _pools.pop()
        for name in _made.values():
            databases.give_back(name)
        _made.clear()


async def created(path: Path) -> Store:
    """Open a store that does not wait for the disk."""
    if _pools:
        return await _opened_on(_pools[-1], path)
    store = Store(path, durability="normal")
    await store.open()
    return store


async def opened(path: Path) -> Store:
    """Open a store; a new database is the copy of one that this process has made before.

    Each step of the schema is a transaction of its own, and waits for the disk.
    """
    if _pools:
        return await created(path)
    if not _empty:
        with tempfile.TemporaryDirectory() as folder:
            await (await created(Path(folder) / "appliance.db")).close()
            _empty.append((Path(folder) / "appliance.db").read_bytes())
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(_empty[0])
    return await created(path)


async def _opened_on(databases: Databases, path: Path) -> Store:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path not in _made:
        _made[path] = await databases.take(path)
    store = Store(path, url=url_of(path), durability="normal")
    await store.open()
    return store


def url_of(path: Path) -> str | None:
    """Return the URL of the database that is made for a path; None for SQLite."""
    return _pools[-1].server.url(_made[path]) if _pools else None


def query(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Execute statements in another connection; return the rows of the last one."""
    if _pools:
        return [_pools[-1].server.query(statement, _made[path]) for statement in statements][-1]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def rows_of(path: Path, table: str) -> int:
    """Count the rows of a table."""
    return int(query(path, f"SELECT count(*) FROM {table}")[0][0])


def make(**changes: Any) -> Prediction:
    """Return a new prediction with these changes."""
    prediction = Prediction(
        id=new_id(),
        model="acme/hello",
        version="0" * 64,
        owner="me",
        input={"text": "Alice"},
        created_at=1000.0,
        stream_token=new_stream_token(),
    )
    return prediction.evolve(**changes)


def writer_connection(store: Store) -> PostgresConnection:
    """Return the connection in which a store in a PostgreSQL database writes."""
    connection = store._owner
    assert connection is not None
    return connection
