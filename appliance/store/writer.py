"""The writer of the database: groups writes, so that one commit stores many of them.

Writes that arrive during a commit form the next batch, so batches grow with the load and a single write is
not delayed. In a thread each statement waits for the interpreter, which the event loop uses most of the time.
So short writes run on the event loop, and the thread only commits, because a commit waits for the disk. Long
writes run in the thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

from appliance.domain.errors import StoreError, UnstorableValue
from appliance.store.database import BUSY_TIMEOUT, is_busy, store_error
from appliance.store.postgres_connection import OutcomeUnknown

T = TypeVar("T")

#: Executes one write. It may run twice (see ``Writer._commit``), so it must change only the database, and
#: raise StoreError only before its first change.
Action = Callable[[sqlite3.Connection], T]

_BUSY_POLL: Final = 0.01  # seconds between attempts to begin while another process writes


class _Write(NamedTuple):
    future: asyncio.Future[Any]
    action: Action[Any]
    short: bool
    alone: bool


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class Writer:
    """Owns the writing connection. Call ``put`` and ``close`` on the event loop that created it."""

    def __init__(self, connection: sqlite3.Connection, path: Path | str, *, remote: bool = False) -> None:
        """Start the thread; ``path`` is for error messages.

        With ``remote``, the connection is to a server, for which the event loop must not wait: all writes run
        in the thread.
        """
        if not remote:
            connection.execute("PRAGMA busy_timeout = 0")  # the event loop must not wait for another process
        self._connection = connection
        self._path = path
        self._remote = remote
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_Write] = []
        self._writing = False  # a batch is under way; only its thread may use the connection
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        #: Each returns the outcomes of a batch.
        self._commits: SimpleQueue[Callable[[], list[_Outcome]] | None] = SimpleQueue()
        # A daemon, so that a process that never closes its store can exit; no committed write is lost.
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, action: Action[T], *, short: bool = False, alone: bool = False) -> asyncio.Future[T]:
        """Queue a write; the future is done when the write is committed or has failed.

        With ``short``, ``action`` must take less than about a millisecond, because it may run on the event
        loop. With ``alone``, it gets a transaction of its own: it would take the writes that are queued with
        it to the thread.

        Raises:
            StoreError: the store is closed.
        """
        if self._closed:
            raise StoreError(f"{self._path}: the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append(_Write(future, action, short, alone))
        if not self._writing:
            self._writing = True
            self._idle.clear()
            self._loop.call_soon(self._write)  # together with what else this iteration writes
        return future

    async def close(self) -> None:
        """Commit the queued writes, end the thread and close the connection."""
        self._closed = True
        await self._idle.wait()
        self._commits.put(None)
        await asyncio.to_thread(self._thread.join)

    def _write(self) -> None:
        size = next((n for n, write in enumerate(self._waiting) if write.alone), len(self._waiting))
        size = max(size, 1)
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        inline = not self._remote and all(write.short for write in batch)
        outcomes = self._execute(batch) if inline else None
        if outcomes is None:
            self._commits.put(partial(self._commit, batch))
        else:
            self._commits.put(partial(self._commit_executed, batch, outcomes))

    def _written(self, outcomes: list[_Outcome]) -> None:
        """Resolve the futures of a batch, and begin the next batch."""
        for future, value, error in outcomes:
            if future.done():  # its awaiting task was cancelled
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        if self._waiting:
            self._write()
        else:
            self._writing = False
            self._idle.set()

    def _run(self) -> None:
        while (commit := self._commits.get()) is not None:
            self._loop.call_soon_threadsafe(self._written, commit())
        self._connection.close()

    def _execute(self, batch: list[_Write]) -> list[_Outcome] | None:
        """Execute ``batch`` in a transaction that is left open; None if nothing was executed."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:  # another process writes, and ``_commit`` waits for it
            return None
        try:
            return self._execute_each(batch)
        except Exception:  # noqa: BLE001  # ``_commit`` executes the write again and reports the error
            self._roll_back()
            return None

    def _execute_each(self, batch: list[_Write]) -> list[_Outcome]:
        """Execute the writes in the open transaction.

        A write that raises StoreError has changed nothing, and the others continue. After any other error the
        transaction must be rolled back.
        """
        outcomes = []
        for write in batch:
            try:
                outcomes.append(_Outcome(write.future, write.action(self._connection), None))
            except StoreError as refusal:
                outcomes.append(_Outcome(write.future, None, refusal))
        return outcomes

    def _commit_executed(self, batch: list[_Write], outcomes: list[_Outcome]) -> list[_Outcome]:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            self._roll_back()
            return self._commit(batch)
        return outcomes

    def _commit(self, batch: list[_Write]) -> list[_Outcome]:
        """Execute and commit ``batch`` in one transaction.

        After an error other than StoreError the transaction is rolled back and each write gets its own
        transaction, so that only the faulty write fails.
        """
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001  # such as a write lock that another process holds too long
            self._roll_back()
            return [_Outcome(write.future, None, self._translated(error)) for write in batch]
        try:
            outcomes = self._execute_each(batch)
            self._connection.execute("COMMIT")
        except OutcomeUnknown as error:  # the writes must not be executed again
            return [_Outcome(write.future, None, self._translated(error)) for write in batch]
        # Any error goes to the caller that awaits the write; the thread must continue.
        except Exception as error:  # noqa: BLE001
            self._roll_back()
            if len(batch) > 1:
                return [outcome for write in batch for outcome in self._commit([write])]
            return [_Outcome(batch[0].future, None, self._translated(error))]
        return outcomes

    def _begin(self) -> None:
        """Begin a transaction; wait up to ``BUSY_TIMEOUT`` seconds for another process that writes."""
        give_up = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= give_up:
                    raise
            time.sleep(_BUSY_POLL)

    def _roll_back(self) -> None:
        # If the rollback fails too, the next BEGIN fails and reports it.
        with contextlib.suppress(sqlite3.Error):
            self._connection.rollback()

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error):
            translated: Exception = store_error(error, self._path)
        elif isinstance(error, (OverflowError, UnicodeEncodeError)):  # sqlite3 could not bind a parameter
            translated = UnstorableValue(f"a value cannot be stored: {error}")
        else:
            return error
        translated.__cause__ = error
        return translated
