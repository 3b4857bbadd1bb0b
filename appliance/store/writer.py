"""The one thread that writes, with group commit.

The thread takes everything that is queued, carries it out in one transaction, commits once and wakes the
event loop once. It never waits for company: while one batch is being committed the next one gathers by
itself, so batches grow with the load and a lone write pays no delay.
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

#: Carries out one write. It may run twice (see ``Writer._commit``), so it changes nothing but the database,
#: and it raises StoreError only before its first change.
Action = Callable[[sqlite3.Connection], T]


class _Write(NamedTuple):
    future: asyncio.Future[Any]
    action: Action[Any]


class _Outcome(NamedTuple):
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None


class Writer:
    """Owns the writing connection. ``put`` and ``close`` belong to the event loop that made it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Starts the thread; ``path`` is for error texts."""
        self._connection = connection
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._closed = False
        # A daemon, so that a process that never closes its store can exit; nothing acknowledged is lost.
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, action: Action[T]) -> asyncio.Future[T]:
        """Queue a write; the future is done when it is committed or refused.

        Raises:
            StoreError: the store is closed.
        """
        if self._closed:
            raise StoreError(f"{self._path}: the store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Write(future, action))
        return future

    async def close(self) -> None:
        """Commit what is queued, end the thread and close the connection."""
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
        """Carry out ``batch`` in one transaction.

        A refusal (StoreError) has changed nothing and the rest goes on. Anything else leaves the transaction
        in doubt: it is rolled back and each write gets one of its own, so that only the culprit fails.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:  # another process writes for too long: it does so to all of them
            return [_Outcome(write.future, None, self._translated(error)) for write in batch]
        outcomes = []
        try:
            for write in batch:
                try:
                    outcomes.append(_Outcome(write.future, write.action(self._connection), None))
                except StoreError as refusal:
                    outcomes.append(_Outcome(write.future, None, refusal))
            self._connection.execute("COMMIT")
        # Whatever it is, the caller that awaits the write is the one to hear of it; the thread must live on.
        except Exception as error:  # noqa: BLE001
            # A transaction that cannot even be rolled back makes the next BEGIN fail, which then says so.
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
    """Runs on the loop, once a batch."""
    for future, value, error in outcomes:
        if future.done():  # its awaiting task was cancelled
            continue
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
