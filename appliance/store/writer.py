"""The writer thread, with group commit.

The thread takes all queued writes, executes them in one transaction, commits once and wakes the event loop
once. It never waits for more writes: while one batch commits, the queue fills with the next one, so batches
grow with the load and a single write is not delayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from appliance.domain.errors import StoreError, UnstorableValue
from appliance.store.database import store_error

T = TypeVar("T")

#: Executes one write. It may run twice (see ``Writer._commit``), so it must change only the database, and
#: raise StoreError only before its first change.
Action = Callable[[sqlite3.Connection], T]


class _Write(NamedTuple):
    future: asyncio.Future[Any]
    action: Action[Any]


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class Writer:
    """Owns the writing connection. Call ``put`` and ``close`` on the event loop that created it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Start the thread; ``path`` is for error messages."""
        self._connection = connection
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._closed = False
        # A daemon, so that a process that never closes its store can exit; no committed write is lost.
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, action: Action[T]) -> asyncio.Future[T]:
        """Queue a write; the future is done when the write is committed or has failed.

        Raises:
            StoreError: the store is closed.
        """
        if self._closed:
            raise StoreError(f"{self._path}: the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Write(future, action))
        return future

    async def close(self) -> None:
        """Commit the queued writes, end the thread and close the connection."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        write: _Write | None = None
        while (write := self._queue.get()) is not None:
            batch = [write]
            while not self._queue.empty():
                write = self._queue.get_nowait()  # only this thread takes, so it cannot be empty now
                if write is None:
                    break
                batch.append(write)
            self._loop.call_soon_threadsafe(_resolve, self._commit(batch))
            if write is None:
                break  # type: ignore[unreachable]  # mypy keeps the narrowing of the while
        self._connection.close()

    def _commit(self, batch: list[_Write]) -> list[_Outcome]:
        """Execute ``batch`` in one transaction.

        A write that raises StoreError has changed nothing, and the others continue. After any other error the
        transaction is rolled back and each write gets its own, so that only the faulty write fails.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:  # another process holds the write lock for too long: all writes fail
            return [_Outcome(write.future, None, self._translated(error)) for write in batch]
        outcomes = []
        try:
            for write in batch:
                try:
                    outcomes.append(_Outcome(write.future, write.action(self._connection), None))
                except StoreError as refusal:
                    outcomes.append(_Outcome(write.future, None, refusal))
            self._connection.execute("COMMIT")
        # Any error goes to the caller that awaits the write; the thread must continue.
        except Exception as error:  # noqa: BLE001
            # If the rollback fails too, the next BEGIN fails and reports it.
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
            if len(batch) > 1:
                return [outcome for write in batch for outcome in self._commit([write])]
            return [_Outcome(batch[0].future, None, self._translated(error))]
        return outcomes

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error):
            translated: Exception = store_error(error, self._path)
        elif isinstance(error, (OverflowError, UnicodeEncodeError)):  # sqlite3 could not bind a parameter
            translated = UnstorableValue(f"{self._path}: a value cannot be stored: {error}")
        else:
            return error
        translated.__cause__ = error
        return translated


def _resolve(outcomes: list[_Outcome]) -> None:
    """Set the results of one batch; runs on the event loop."""
    for future, value, error in outcomes:
        if future.done():  # its awaiting task was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
