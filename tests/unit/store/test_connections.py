"""The connections that read."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.domain.errors import StoreError
from tests.support.store_files import created


class FaultyReader:
    """A connection on a disk with errors: it cannot end its transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str) -> Any:
        return self._connection.execute(statement)

    def rollback(self) -> None:
        self._connection.rollback()
        raise sqlite3.OperationalError("disk I/O error")

    def close(self) -> None:
        self._connection.close()


async def test_a_connection_that_cannot_end_a_transaction_is_used_again(tmp_path: Path) -> None:
    """A store whose connections are lost would answer nothing."""
    store = await created(tmp_path / "one.db")
    size = len(store._readers)
    for index in range(size):
        store._readers[index] = cast("sqlite3.Connection", FaultyReader(store._readers[index]))
    for _ in range(size + 1):
        assert await store.read(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
    await store.close()


class UnconnectedReader(FaultyReader):
    """A connection to a server that accepts no more connections."""

    def execute(self, statement: str) -> Any:
        raise sqlite3.OperationalError("too many connections")


async def test_a_connection_that_failed_is_used_after_the_others(tmp_path: Path) -> None:
    """A reader that cannot connect must not stop those that are connected."""
    store = await created(tmp_path / "one.db")
    store._readers[-1] = cast("sqlite3.Connection", UnconnectedReader(store._readers[-1]))
    with pytest.raises(StoreError, match="too many connections"):
        await store.read(lambda connection: connection.execute("SELECT 1"))
    for _ in range(2):
        assert await store.read(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
    await store.close()
