"""A connection to PostgreSQL with the methods and the errors of ``sqlite3.Connection`` that the store uses.

The actions of the tables run on it unchanged. Imports psycopg only when a connection is made.

**Connection lost.** A lost connection is opened again by the next transaction, after growing delays while the
server cannot be reached. Statements in between fail at once with ``ConnectionLost``.

**Interrupted COMMIT.** Each transaction that writes stores a random id in the row of its connection in
``store_writers``. If the connection is lost during the COMMIT, this row tells afterwards whether the
transaction was committed. The transaction id of PostgreSQL would not do: after a crash the server may give
the same id to another transaction.

**One owner.** The connection of the owner holds an advisory lock for the whole session, and writes only in
this session. So a process whose connection is lost cannot write until it has the lock again. Each owner adds
1 to the generation of the database, so that it notices if another appliance owned the database meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from appliance.domain.errors import StoreError
from appliance.store.postgres_queries import must_insert, translated

if TYPE_CHECKING:
    import psycopg

    from appliance.store.postgres import Server

_log = logging.getLogger(__name__)

Parameters = Mapping[str, Any] | Sequence[Any]

SCHEMA: Final = "hashtext(current_schema())"
_WRITE_LOCK: Final = 1_734_001  # the first key of an advisory lock; the second is the schema
OWNER_LOCK: Final = 1_734_002

#: The isolation level does not depend on the defaults of the database.
_BEGIN: Final = (
    f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_advisory_xact_lock({_WRITE_LOCK}, {SCHEMA})"
)
_BATCH: Final = (
    "INSERT INTO store_writers VALUES ('{writer}', '{batch}', now())"
    " ON CONFLICT (writer) DO UPDATE SET batch = excluded.batch, written_at = excluded.written_at"
)
_LAST_BATCH: Final = "SELECT batch FROM store_writers WHERE writer = %s"
_REMOVE_WRITERS: Final = "DELETE FROM store_writers WHERE written_at < now() - interval '1 day'"
_READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_OWN: Final = f"SELECT pg_try_advisory_lock({OWNER_LOCK}, {SCHEMA})"
_TERM: Final = "SELECT term, head FROM store_owner"
_NEW_OWNER: Final = "UPDATE store_owner SET generation = generation + 1, holder = %s RETURNING generation"
_OWNER: Final = "SELECT generation, holder FROM store_owner"
_SESSION: Final = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END_SESSION: Final = (
    "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"
)

_DELAYS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts to connect
_RESOLVE: Final = 20.0  # seconds for which the outcome of an interrupted COMMIT is asked for
_STREAMED: Final = 8  # rows that `stream` fetches at once: a prediction may have several MiB


class ConnectionLost(sqlite3.OperationalError):
    """The server cannot be reached, or it has ended the connection."""


class OutcomeUnknown(ConnectionLost):
    """The connection was lost during a COMMIT, and it is not known whether it took effect."""


class OwnershipLost(sqlite3.OperationalError):
    """Another appliance has become the owner of the database."""


class PostgresConnection:
    """For use by one thread at a time."""

    def __init__(self, server: Server, *, reads: bool = False) -> None:
        """Connect now. With ``reads``, the connection is read-only, and connects at its first use."""
        self._server = server
        self._writes = not reads
        self._connection: psycopg.Connection | None = None
        self._failures = 0  # attempts to connect that failed since the last success
        self._retry_at = 0.0  # monotonic time of the next attempt
        self._writer = uuid.uuid4().hex  # the key of this connection in store_writers
        self._batch: str | None = None  # the random id of the open transaction that writes
        self._taken: int | None = None  # the generation that the open transaction gives to the database
        self._sessions: list[tuple[Any, ...]] = []  # process ids and starts of sessions that may be open
        self.generation: int | None = None  # of the database, since this connection owns it
        self.lost: str | None = None  # why this process no longer owns the database
        if self._writes:
            self._connect()

    # -- the interface of sqlite3.Connection

    def execute(self, statement: str, parameters: Parameters = ()) -> Any:
        """Execute a statement, or BEGIN IMMEDIATE, BEGIN, COMMIT and ROLLBACK."""
        match statement:
            case "BEGIN IMMEDIATE":
                batch = uuid.uuid4().hex
                cursor = self._begin(f"{_BEGIN}; {_BATCH.format(writer=self._writer, batch=batch)}")
                self._batch = batch
                return cursor
            case "BEGIN":
                return self._begin(_READ)
            case "COMMIT":
                return self._commit()
            case "ROLLBACK":
                return self.rollback()
        cursor = self._execute(translated(statement), parameters or None)
        if must_insert(statement) and cursor.rowcount == 0:
            raise sqlite3.IntegrityError("a row with the same key exists")
        return cursor

    def executemany(self, statement: str, parameters: Iterable[Parameters]) -> Any:
        with self._errors():
            cursor = self._open().cursor()
            cursor.executemany(translated(statement), list(parameters))
        return cursor

    def rollback(self) -> None:
        """End the transaction, if any; a connection that is lost has none."""
        self._batch = self._taken = None
        connection = self._connection
        if connection is not None and not connection.closed and connection.info.transaction_status:
            with contextlib.suppress(sqlite3.Error), self._errors():
                connection.execute("ROLLBACK")

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._retry_at = float("inf")
        if connection is not None:
            connection.close()

    # -- further methods

    def begin_upgrade(self) -> None:
        """Begin a transaction that writes, also if the database has no tables yet."""
        self._begin(_BEGIN)

    def run(self, script: str) -> Any:
        """Execute one or more statements without parameters."""
        with self._errors():
            return self._open().execute(script)  # not binary: that format allows only one statement

    def row(self, statement: str, parameters: Parameters) -> tuple[Any, ...] | None:
        """Return the first row of a query, without a transaction."""
        query = translated(statement)
        if self._connection is not None:
            with contextlib.suppress(ConnectionLost):
                return self._first(query, parameters)
        self._connect()
        return self._first(query, parameters)

    def _first(self, query: str, parameters: Parameters) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._execute(query, parameters or None).fetchone()
        return found

    def stream(self, statement: str, parameters: Parameters) -> Iterator[tuple[Any, ...]]:
        """Execute a query, and fetch its rows while they are read."""
        with self._errors(), self._open().cursor(name="streamed", binary=True) as cursor:
            cursor.itersize = _STREAMED
            cursor.execute(translated(statement), parameters)
            yield from cursor

    def take_ownership(self, holder: str, term: int | None = None) -> int | None:
        """Become the owner of the database with the open transaction; None if another process is the owner.

        Returns the new generation, which is also ``generation`` once the transaction is committed. In a
        cluster, ``term`` is the term in which this machine is the head.

        Raises:
            StoreError: another machine is the head now.
        """
        if term is not None:
            found, head = self._execute(_TERM).fetchone()
            if found != term:
                raise StoreError(f"{self._server.name}: {head} has become the head of the cluster")
        if not self._execute(_OWN).fetchone()[0]:
            return None
        self._execute(_REMOVE_WRITERS)
        self._taken = int(self._execute(_NEW_OWNER, (holder,)).fetchone()[0])
        return self._taken

    def owner(self) -> str:
        return str(self._execute(_OWNER).fetchone()[1])

    # -- connections

    def _connect(self) -> None:
        """Open the connection, unless an attempt has just failed.

        Raises:
            ConnectionLost: the server cannot be reached, or another process has the lock of the owner.
            OwnershipLost: another appliance has owned the database meanwhile.
        """
        if self.lost is not None:
            raise OwnershipLost(self.lost)
        wait = self._retry_at - time.monotonic()
        if wait > 0:
            raise ConnectionLost(f"no connection, next attempt in {min(wait, 99):.1f} s")
        self._disconnect()
        try:
            self._connect_and_own()
        except BaseException as error:
            # An open connection would be used by the next transaction, although it may not own the database.
            self._disconnect()
            self._retry_at = time.monotonic() + _DELAYS[min(self._failures, len(_DELAYS) - 1)]
            self._failures += 1
            if isinstance(error, sqlite3.Error) and not isinstance(error, (ConnectionLost, OwnershipLost)):
                raise ConnectionLost(f"the new connection cannot be used: {error}") from error
            raise
        self._failures = 0

    def _connect_and_own(self) -> None:
        with self._errors():
            self._connection = self._server.connect(writes=self._writes)
        if not self._writes:
            return
        before = list(self._sessions)
        self._sessions.append(self._execute(_SESSION).fetchone())
        for session in before:  # the server may not have noticed yet that their connections are lost
            self._execute(_END_SESSION, session)
        if self.generation is not None:
            self._own_again()
        del self._sessions[:-1]

    def _own_again(self) -> None:
        """Take the lock of the owner again, for a new connection."""
        locked = self._execute(_OWN).fetchone()[0]
        generation, holder = self._execute(_OWNER).fetchone()
        if generation != self.generation:
            self.lost = f"{holder} has become the owner of the database: this process writes no more"
            _log.error("%s: %s", self._server.name, self.lost)
            raise OwnershipLost(self.lost)
        if not locked:
            raise ConnectionLost("the previous connection still holds the lock of the database")

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._batch = self._taken = None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.close()

    def _open(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            raise ConnectionLost("the connection was lost")
        return self._connection

    def _execute(self, statement: str, parameters: Parameters | None = None) -> Any:
        with self._errors():
            return self._open().execute(statement, parameters, binary=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            translated_error = _translated(error, self._connection)
            if isinstance(translated_error, ConnectionLost):
                self._disconnect()
            raise translated_error from error

    # -- transactions

    def _begin(self, statement: str) -> Any:
        """Begin a transaction, on a new connection if the present one is lost."""
        if self._connection is None or self._connection.closed:
            self._connect()
            return self._begun(statement)
        try:
            return self._begun(statement)
        except ConnectionLost:  # for example the server was restarted since the last transaction
            self._connect()
            return self._begun(statement)

    def _begun(self, statement: str) -> Any:
        try:
            return self.run(statement)
        except ConnectionLost:
            raise
        except sqlite3.Error:  # such as a lock timeout, after which the session refuses all but ROLLBACK
            self.rollback()
            raise

    def _commit(self) -> Any:
        """Commit the transaction.

        Raises:
            sqlite3.OperationalError: the transaction is not committed, or its outcome cannot be found out.
        """
        from psycopg.pq import TransactionStatus

        connection, batch, taken = self._open(), self._batch, self._taken
        self._batch = self._taken = None
        if connection.info.transaction_status is TransactionStatus.INERROR:  # COMMIT would roll back silently
            raise sqlite3.OperationalError("a statement of the transaction failed")
        cursor = None
        try:
            cursor = self._execute("COMMIT")
        except ConnectionLost:
            if batch is None or not self._was_committed(batch):
                raise
            if taken is not None:
                self._disconnect()  # the next connection takes the lock, which belonged to the lost session
        if taken is not None:
            self.generation = taken
        return cursor

    def _was_committed(self, batch: str) -> bool:
        """Return whether a transaction was committed, after the connection was lost during its COMMIT.

        Raises:
            OutcomeUnknown: that could not be found out within ``_RESOLVE`` seconds.
        """
        give_up = time.monotonic() + _RESOLVE
        while True:
            try:
                if self._connection is None:
                    self._connect()
                # The lock is free once the interrupted transaction is committed or rolled back.
                self._begun(_BEGIN)
                found = self._execute(_LAST_BATCH, (self._writer,)).fetchone()
                self.rollback()
                return found is not None and bool(found[0] == batch)
            except (sqlite3.Error, StoreError) as error:
                self.rollback()
                if isinstance(error, OwnershipLost) or time.monotonic() >= give_up:
                    text = f"it is not known whether the last writes were committed: {error}"
                    raise OutcomeUnknown(text) from error
            time.sleep(_DELAYS[0])


def _translated(error: psycopg.Error, connection: psycopg.Connection | None) -> Exception:
    """Return the error of ``sqlite3`` that means the same."""
    import psycopg

    state = error.sqlstate or ""
    text = " ".join(str(error).split())  # of several lines
    broken = connection is None or connection.closed
    # Class 08: connection failures; 57P: the server stops or starts; 25006: a standby server.
    if broken or state.startswith(("08", "57P")) or state == "25006":
        return ConnectionLost(text)
    if isinstance(error, psycopg.errors.NumericValueOutOfRange):
        return OverflowError(text)
    if state.startswith("23"):
        return sqlite3.IntegrityError(text)
    if state.startswith("54"):  # a limit of the server, such as 2,704 bytes for an entry of an index
        return sqlite3.DataError(text)
    translated_error = sqlite3.OperationalError(text)
    if state == "53100":
        translated_error.sqlite_errorcode = sqlite3.SQLITE_FULL
    elif state == "55P03":  # lock_timeout
        translated_error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    else:
        translated_error.sqlite_errorcode = sqlite3.SQLITE_ERROR
    return translated_error
