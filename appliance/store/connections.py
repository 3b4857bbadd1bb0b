"""The connections to the database: one writer thread, a few read-only connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from appliance.domain.audit import AuditEvent
from appliance.domain.errors import StoreError
from appliance.store import audit_chain, postgres, rows
from appliance.store.database import Durability, connect, connect_reader, store_error, upgrade
from appliance.store.encryption import data_key, files_key
from appliance.store.owner import OwnerLock
from appliance.store.postgres import Server
from appliance.store.postgres_connection import PostgresConnection
from appliance.store.queries import QUERIES
from appliance.store.writer import Action, Writer

T = TypeVar("T")
Parameters = dict[str, Any]

_log = logging.getLogger(__name__)

_READERS: Final = 2  # threads, each with a connection of its own
_SERVER_READERS: Final = 4  # the same for a server, for whose answers the threads wait
_ROW_READERS: Final = 2  # threads for single rows on a server, which must not wait for long reads
_OWNER_POLL: Final = 0.2  # seconds between attempts to own a database on a server


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

    def __init__(self, path: Path, *, url: str | None, durability: Durability) -> None:
        self._path = path
        self._durability: Durability = durability
        self._server = None if url is None else Server(url, durability)
        self._name: Path | str = path if self._server is None else self._server.name  # for error messages
        self._owner: PostgresConnection | None = None  # the connection that writes, if it is to a server
        self._key: bytes | None = None  # of an encrypted database
        self._lock = OwnerLock(path)
        self._writer: Writer | None = None
        self._inline: sqlite3.Connection | None = None  # for single rows of SQLite
        # One for each thread. The reader used last is taken first: each reader of a server connects at its
        # first use, so few connections are opened. A reader that failed is taken last.
        self._row_readers: deque[PostgresConnection] = deque()  # for single rows on a server
        self._readers: deque[sqlite3.Connection] = deque()
        self._row_threads: ThreadPoolExecutor | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._heads: set[asyncio.Future[Any]] = set()  # writes whose audit record is not in the head file yet

    async def open(self) -> None:
        """Open the database; create or upgrade it if needed.

        Raises:
            StoreError: the file is damaged, newer than this code, or cannot be opened; the message names it.
        """
        prepare = self._prepare if self._server is None else partial(self._prepare_server, self._server)
        writing = await asyncio.to_thread(prepare)
        if self._server is not None:
            self._row_threads = ThreadPoolExecutor(_ROW_READERS, "store-row-reader")
        self._threads = ThreadPoolExecutor(len(self._readers), "store-reader")
        self._writer = Writer(writing, self._name, remote=self._server is not None)

    def _prepare_server(self, server: Server) -> sqlite3.Connection:
        with contextlib.ExitStack() as opened:
            self._key = files_key(self._path)
            writing = opened.enter_context(contextlib.closing(server.open()))
            postgres.upgrade(writing, server.name)
            opened.pop_all()
        self._owner = writing
        self._row_readers.extend(server.reader() for _ in range(_ROW_READERS))
        self._readers.extend(cast("sqlite3.Connection", server.reader()) for _ in range(_SERVER_READERS))
        return cast("sqlite3.Connection", writing)

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
        self._readers.extend(readers)
        return writing

    @property
    def data_key(self) -> bytes | None:
        """The key of the encrypted database and files; None if they are not encrypted.

        With a database on a server, only files are encrypted.
        """
        return self._key

    async def own(self, patience: float = 0.0, *, term: int | None = None) -> None:
        """Make this the only process that may run predictions from this database, until ``close`` or death.

        Waits up to ``patience`` seconds for another process to release the database. Reads and writes of
        tokens need no ownership. ``term`` is that of the head's ``Lease``, if machines take turns as the head
        of a cluster.

        Raises:
            StoreError: another process owns the database; the message has its pid. Or another machine has
                become the head.
        """
        if self._server is None:
            await self._lock.take(patience)
        else:
            await self._own_server(patience, term)

    async def _own_server(self, patience: float, term: int | None) -> None:
        connection = self._owner
        assert connection is not None, "the store is open"
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        holder = f"{socket.gethostname()}, pid {os.getpid()}"
        while connection.generation is None:
            generation = await self.write(lambda _: connection.take_ownership(holder, term), alone=True)
            if generation is not None:
                return
            if loop.time() >= give_up:
                other = await self.write(lambda _: connection.owner(), alone=True)
                raise StoreError(
                    f"{self._name}: the database is in use by another appliance ({other}):"
                    " stop that appliance, or use another database"
                )
            await asyncio.sleep(_OWNER_POLL)

    @property
    def lost(self) -> str | None:
        """Why this process can never write again; None if it can."""
        return None if self._owner is None else self._owner.lost

    @property
    def name(self) -> str:
        """The path of the database, or its URL without the password."""
        return str(self._name)

    @property
    def on_server(self) -> bool:
        """Whether the database is on a PostgreSQL server."""
        return self._server is not None

    @property
    def head_file(self) -> Path:
        """The file with the hash of the newest record of the audit log."""
        return audit_chain.head_file(self._path, on_server=self.on_server)

    async def close(self) -> None:
        """Commit the queued writes, then close the database. Later calls raise StoreError."""
        if self._heads:
            await asyncio.wait(self._heads)
        pools, self._threads, self._row_threads = (self._threads, self._row_threads), None, None
        for threads in pools:
            if threads is not None:
                await asyncio.to_thread(threads.shutdown)
        while self._readers:
            self._readers.pop().close()
        while self._row_readers:
            self._row_readers.pop().close()
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
            raise StoreError(f"{self._name}: the store is not open")
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
        if self._server is not None:
            head = asyncio.ensure_future(self._write_head(write))
            self._heads.add(head)
            head.add_done_callback(self._heads.discard)
            return head

        def committed(write: asyncio.Future[T]) -> None:
            if not write.cancelled() and write.exception() is None and self._inline is not None:
                audit_chain.write_head(self.head_file, self._inline)

        write.add_done_callback(committed)
        return write

    async def _write_head(self, write: asyncio.Future[T]) -> T:
        """Write the head in a reader thread, once ``write`` is committed."""
        value = await asyncio.shield(write)
        try:
            await self.read(lambda connection: audit_chain.write_head(self.head_file, connection))
        except StoreError as error:  # the next record writes it
            _log.warning("%s: the hash of the newest audit record is not written: %s", self.head_file, error)
        return value

    async def row(self, query: str, parameters: Parameters) -> rows.Row | None:
        """Read one row; use this only for queries that an index answers.

        SQLite reads it on the event loop, because a thread would take longer. A server is asked in a thread
        that is not used for other reads, so that requests do not wait for slow ones.
        """
        if self._server is None:
            return self._row_inline(query, parameters)

        def reading() -> rows.Row | None:
            reader, put_back = self._row_readers.pop(), self._row_readers.append
            try:
                return reader.row(QUERIES[query], parameters)
            except sqlite3.Error as exc:
                put_back = self._row_readers.appendleft
                raise store_error(exc, self._name) from exc
            finally:
                put_back(reader)

        return await self._in_thread(reading, self._row_threads)

    def _row_inline(self, query: str, parameters: Parameters) -> rows.Row | None:
        if self._inline is None:
            raise StoreError(f"{self._name}: the store is not open")
        try:
            row: rows.Row | None = self._inline.execute(QUERIES[query], parameters).fetchone()
        except sqlite3.Error as exc:
            raise store_error(exc, self._name) from exc
        return row

    async def read(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``action`` in a reader thread, in one transaction."""

        def reading() -> T:
            connection, put_back = self._readers.pop(), self._readers.append
            try:
                connection.execute("BEGIN")
                return action(connection)
            except sqlite3.Error as exc:
                put_back = self._readers.appendleft
                raise store_error(exc, self._name) from exc
            finally:
                with contextlib.suppress(sqlite3.Error):  # if the rollback fails, the next BEGIN reports it
                    connection.rollback()
                put_back(connection)

        return await self._in_thread(reading, self._threads)

    async def _in_thread(self, reading: Callable[[], T], threads: ThreadPoolExecutor | None) -> T:
        if threads is None:
            raise StoreError(f"{self._name}: the store is not open")
        return await asyncio.get_running_loop().run_in_executor(threads, reading)
