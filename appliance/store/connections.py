"""The connections to the SQLite file: one writer thread, a few read-only connections."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from appliance.domain.errors import StoreError
from appliance.store import rows
from appliance.store.database import Durability, connect, connect_reader, store_error, upgrade
from appliance.store.owner import OwnerLock
from appliance.store.queries import QUERIES
from appliance.store.writer import Action, Writer

T = TypeVar("T")
Parameters = dict[str, Any]

_READERS: Final = 2  # threads, each with a connection of its own


class Connections:
    """What every table of the store reads and writes through; see ``Store`` for what a write promises."""

    def __init__(self, path: Path, *, durability: Durability = "full") -> None:
        """Touches nothing; ``open`` does."""
        self._path = path
        self._durability: Durability = durability
        self._lock = OwnerLock(path)
        self._writer: Writer | None = None
        self._inline: sqlite3.Connection | None = None
        self._readers: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """See ``Store.open``."""
        writing = await asyncio.to_thread(self._prepare)
        self._threads = ThreadPoolExecutor(_READERS, "store-reader")
        self._writer = Writer(writing, self._path)

    def _prepare(self) -> sqlite3.Connection:
        with contextlib.ExitStack() as opened:  # closes again what was opened, if the rest fails
            try:
                writing = opened.enter_context(contextlib.closing(connect(self._path, self._durability)))
                upgrade(writing, self._path)
                inline, *readers = (
                    opened.enter_context(contextlib.closing(connect_reader(self._path)))
                    for _ in range(1 + _READERS)
                )
            except sqlite3.Error as exc:
                raise store_error(exc, self._path) from exc
            opened.pop_all()
        self._inline = inline
        for reader in readers:
            self._readers.put(reader)
        return writing

    async def own(self, patience: float = 0.0) -> None:
        """See ``Store.own``."""
        await self._lock.take(patience)

    async def close(self) -> None:
        """See ``Store.close``."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        while not self._readers.empty():
            self._readers.get_nowait().close()
        inline, self._inline = self._inline, None
        if inline is not None:
            inline.close()
        if self._writer is not None:
            await self._writer.close()  # last, so that SQLite folds the WAL into the file and removes it
        self._lock.release()

    def change(self, query: str, parameters: Parameters) -> asyncio.Future[None]:
        """Queue one statement of ``QUERIES``."""

        def action(connection: sqlite3.Connection) -> None:
            connection.execute(QUERIES[query], parameters)

        return self.write(action)

    def write(self, action: Action[T]) -> asyncio.Future[T]:
        """Queue ``action`` for the writer thread."""
        if self._writer is None:
            raise StoreError(f"{self._path}: the store is not open")
        return self._writer.put(action)

    def row(self, query: str, parameters: Parameters) -> rows.Row | None:
        """One row, read on the event loop; only for queries that an index answers."""
        if self._inline is None:
            raise StoreError(f"{self._path}: the store is not open")
        try:
            row: rows.Row | None = self._inline.execute(QUERIES[query], parameters).fetchone()
        except sqlite3.Error as exc:
            raise store_error(exc, self._path) from exc
        return row

    async def read(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``action`` in a reader thread; its queries all see the same state of the database."""

        def reading() -> T:
            connection = self._readers.get()
            try:
                connection.execute("BEGIN")
                return action(connection)
            except sqlite3.Error as exc:
                raise store_error(exc, self._path) from exc
            finally:
                connection.rollback()
                self._readers.put(connection)

        if self._threads is None:
            raise StoreError(f"{self._path}: the store is not open")
        return await asyncio.get_running_loop().run_in_executor(self._threads, reading)
