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

from appliance.domain.audit import AuditEvent
from appliance.domain.errors import StoreError
from appliance.store import audit_chain, rows
from appliance.store.database import Durability, connect, connect_reader, store_error, upgrade
from appliance.store.encryption import data_key
from appliance.store.owner import OwnerLock
from appliance.store.queries import QUERIES
from appliance.store.writer import Action, Writer

T = TypeVar("T")
Parameters = dict[str, Any]

_READERS: Final = 2  # threads, each with a connection of its own


class Connections:
    """Reads and writes for all tables of the store.

    Writes return a future at once. They take effect in the order of the calls, awaited or not: a ``finish``
    called after an ``append`` commits with it or later, never before. The future is done after the commit;
    cancelling it does not undo the write. Awaiting it is optional (asyncio logs the error of a future that
    was not awaited); it is not a coroutine, so ``create_task`` does not accept it. A failed write fails
    alone, with ``StoreError`` (an id that exists, a full disk) or its subclasses ``UnstorableValue`` (the
    value is at fault) and ``StatusConflict``. The caller must not change values after passing them to a
    write.

    All methods must be called on the event loop that called ``open``.
    """

    def __init__(self, path: Path, *, durability: Durability) -> None:
        self._path = path
        self._durability: Durability = durability
        self._key: bytes | None = None  # of an encrypted database
        self._lock = OwnerLock(path)
        self._writer: Writer | None = None
        self._inline: sqlite3.Connection | None = None
        self._readers: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    async def open(self) -> None:
        """Open the database; create or upgrade it if needed.

        Raises:
            StoreError: the file is damaged, newer than this code, or cannot be opened; the message names it.
        """
        writing = await asyncio.to_thread(self._prepare)
        self._threads = ThreadPoolExecutor(_READERS, "store-reader")
        self._writer = Writer(writing, self._path)

    def _prepare(self) -> sqlite3.Connection:
        with contextlib.ExitStack() as opened:  # closes the connections if a later one fails
            try:
                self._key = data_key(self._path)
                writing = opened.enter_context(
                    contextlib.closing(connect(self._path, self._durability, self._key))
                )
                upgrade(writing, self._path)
                inline, *readers = (
                    opened.enter_context(contextlib.closing(connect_reader(self._path, self._key)))
                    for _ in range(1 + _READERS)
                )
            except sqlite3.Error as exc:
                raise store_error(exc, self._path) from exc
            opened.pop_all()
        self._inline = inline
        for reader in readers:
            self._readers.put(reader)
        return writing

    @property
    def data_key(self) -> bytes | None:
        """The key of the encrypted database; None if it is not encrypted."""
        return self._key

    async def own(self, patience: float = 0.0) -> None:
        """Make this the only process that may run predictions from this database, until ``close`` or death.

        Waits up to ``patience`` seconds for another process to release the database. Reads and writes of
        tokens need no ownership.

        Raises:
            StoreError: another process owns the database; the message has its pid.
        """
        await self._lock.take(patience)

    async def close(self) -> None:
        """Commit the queued writes, then close the database. Later calls raise StoreError."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await asyncio.to_thread(threads.shutdown)
        while not self._readers.empty():
            self._readers.get_nowait().close()
        inline, self._inline = self._inline, None
        if inline is not None:
            inline.close()
        if self._writer is not None:
            await self._writer.close()  # last, so that SQLite copies the WAL into the database and removes it
        self._lock.release()

    def change(self, query: str, parameters: Parameters) -> asyncio.Future[None]:
        """Queue a write that executes one statement of ``QUERIES``."""

        def action(connection: sqlite3.Connection) -> None:
            connection.execute(QUERIES[query], parameters)

        return self.write(action)

    def write(self, action: Action[T], *, short: bool = False, alone: bool = False) -> asyncio.Future[T]:
        """Queue ``action``; ``short`` and ``alone`` as in ``Writer.put``."""
        if self._writer is None:
            raise StoreError(f"{self._path}: the store is not open")
        return self._writer.put(action, short=short, alone=alone)

    def audited(self, action: Action[T], event: AuditEvent | None) -> asyncio.Future[T]:
        """Queue a write, and store the record of ``event`` in the same transaction.

        If ``action`` raises StoreError, there is no record. ``event`` is None for a write that is not in the
        audit log.
        """
        if event is None:
            return self.write(action)

        def both(connection: sqlite3.Connection) -> T:
            value = action(connection)
            audit_chain.append(connection, event)
            return value

        return self.with_head(self.write(both))

    def with_head(self, write: asyncio.Future[T]) -> asyncio.Future[T]:
        """Write the newest audit record into the file beside the database, once ``write`` is committed."""

        def committed(write: asyncio.Future[T]) -> None:
            if not write.cancelled() and write.exception() is None and self._inline is not None:
                audit_chain.write_head(self._path, self._inline)

        write.add_done_callback(committed)
        return write

    def row(self, query: str, parameters: Parameters) -> rows.Row | None:
        """Read one row on the event loop; use this only for queries that an index answers."""
        if self._inline is None:
            raise StoreError(f"{self._path}: the store is not open")
        try:
            row: rows.Row | None = self._inline.execute(QUERIES[query], parameters).fetchone()
        except sqlite3.Error as exc:
            raise store_error(exc, self._path) from exc
        return row

    async def read(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``action`` in a reader thread, in one transaction."""

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
