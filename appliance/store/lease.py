"""The lease that makes one machine the head of a cluster. It needs a database on PostgreSQL.

The session of the holder has an advisory lock. The server ends the session, and so frees the lock, when the
holder dies, and when the holder has sent nothing for some seconds: it is cut off, or it hangs.

**Fencing.** Each new holder adds 1 to the term of the lease, and ends the session in which the gateway of the
former holder writes. It also adds 1 to the generation of the database, so that this gateway cannot write in a
new session. A gateway can become the owner of the database only in the term of its own machine.
"""

# ruff: noqa: S608 - the statements are put together from constants
from __future__ import annotations

import contextlib
import sqlite3
from typing import Any, Final

from appliance.domain.errors import LeaseLost, StoreError, StoreUnavailable
from appliance.store import postgres
from appliance.store.database import is_temporary
from appliance.store.encryption import FILES_KEY_ID
from appliance.store.postgres_connection import OWNER_LOCK, SCHEMA, ConnectionLost, PostgresConnection

_LEASE: Final = 1_734_003  # the first key of an advisory lock; the second is the schema
_STANDBY: Final = 1_734_004  # a shared lock of each machine that waits for the lease

_TRY: Final = f"SELECT pg_try_advisory_lock({_LEASE}, {SCHEMA})"
_STAND_BY: Final = f"SELECT pg_advisory_lock_shared({_STANDBY}, {SCHEMA})"
_STAND_BY_NO_MORE: Final = f"SELECT pg_advisory_unlock_shared({_STANDBY}, {SCHEMA})"
_HEAD: Final = "SELECT head FROM store_owner"
_FILES_KEY_ID: Final = f"SELECT value FROM secrets WHERE name = '{FILES_KEY_ID}'"
_TERM: Final = "SELECT term, head FROM store_owner"
_NEW_TERM: Final = (
    "UPDATE store_owner SET term = term + 1, generation = generation + 1, head = :head, holder = :head"
    " RETURNING term"
)
_HELD: Final = (
    "locktype = 'advisory' AND objsubid = 2"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    f" AND objid::bigint = ({SCHEMA}::bigint & 4294967295)"
)
_END_WRITERS: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks"
    f" WHERE {_HELD} AND classid::bigint = {OWNER_LOCK} AND pid <> pg_backend_pid()"
)
_STANDBYS: Final = f"SELECT count(*) FROM pg_locks WHERE {_HELD} AND classid::bigint = {_STANDBY}"
_OWN_SESSION: Final = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_END_SESSION: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid AND backend_start::text = :start"
)


class Lease:
    """For use by one thread at a time. Each call waits for the server."""

    def __init__(self, url: str, head: str, seconds: float) -> None:
        """``head`` names this machine for others. The lease ends after ``seconds`` without a renewal."""
        self._server = postgres.Server(url, "full")
        self._head = head
        self._connection: PostgresConnection | None = None
        self._session: tuple[Any, ...] | None = None
        self.seconds: Final = seconds
        self.term = 0  # of this machine, once it has the lease

    @property
    def name(self) -> str:
        """The URL of the database without the password."""
        return self._server.name

    def acquire(self) -> bool:
        """Try once to get the lease; return whether this machine is the head now.

        Raises:
            StoreUnavailable: the server does not answer, or another session holds the write lock. Try again.
            StoreError: the database cannot be used.
        """
        with self._reported():
            connection = self._connected()
            if not connection.run(_TRY).fetchone()[0]:
                return False
            try:
                self.term = self._begin_term(connection)
            except BaseException:
                self._disconnect()  # frees the lease, and ends a transaction in which a statement has failed
                raise
        return True

    def _begin_term(self, connection: PostgresConnection) -> int:
        """Return the new term of this machine, whose session has the lease."""
        self._hold(connection)
        # The open transaction of a writer that is cut off would hold the write lock.
        connection.run(_END_WRITERS)
        postgres.upgrade(connection, self.name)
        connection.execute("BEGIN IMMEDIATE")
        term = int(connection.execute(_NEW_TERM, {"head": self._head}).fetchone()[0])
        connection.execute("COMMIT")
        connection.run(_END_WRITERS)  # of a gateway that began in between
        connection.run(_STAND_BY_NO_MORE)
        # If the session is lost, a transaction opens a new session, which does not have the lease.
        if connection.run(_OWN_SESSION).fetchone() != self._session:
            raise ConnectionLost("the session that had the lease was lost")
        return term

    def holder(self) -> str:
        """Return the name and the address of the head."""
        with self._reported():
            try:
                found = self._connected().run(_HEAD).fetchone()
            except ConnectionLost:
                raise
            except sqlite3.Error:  # the head has not created the tables yet
                return "another machine"
        return str(found[0]) or "another machine"

    def files_key_id(self) -> str | None:
        """Return the id of the data key of the files; None if the files are not encrypted."""
        with self._reported():
            try:
                found = self._connected().run(_FILES_KEY_ID).fetchone()
            except ConnectionLost:
                raise
            except sqlite3.Error:  # the head has not created the tables yet
                return None
        return None if found is None else str(found[0])

    def renew(self) -> bool:
        """Keep the lease; return whether another machine waits for it.

        Raises:
            LeaseLost: another machine has become the head.
            StoreUnavailable: the server does not answer. Try again.
        """
        with self._reported():
            try:
                return bool(self._connected().run(_STANDBYS).fetchone()[0])
            except ConnectionLost:
                self._disconnect()
            self._acquire_again()
            return True  # a machine that waits has lost its connection as well: it may be connecting again

    def close(self) -> None:
        """Free the lease."""
        self._disconnect()

    def _acquire_again(self) -> None:
        """Get the lease for a new session, unless another machine had the lease meanwhile."""
        before, connection = self._session, self._server.open()
        self._connection = connection
        try:
            if before is not None:  # the server may not know yet that the connection of this session is lost
                connection.execute(_END_SESSION, {"pid": before[0], "start": before[1]})
            locked = connection.run(_TRY).fetchone()[0]
            term, head = connection.run(_TERM).fetchone()
            if term != self.term:
                raise LeaseLost(f"{head} has become the head of the cluster")
            if not locked:
                raise ConnectionLost("the former session still holds the lease")
            self._hold(connection)
        except BaseException:
            self._connection = None
            connection.close()
            raise

    def _hold(self, connection: PostgresConnection) -> None:
        """Let the server end the session after ``seconds`` without a statement."""
        connection.run(f"SET idle_session_timeout = {max(1, round(self.seconds * 1000))}")
        self._session = connection.run(_OWN_SESSION).fetchone()

    def _connected(self) -> PostgresConnection:
        if self._connection is None:
            if self.term:
                raise ConnectionLost("the connection was lost")
            self._connection = self._server.open()
            self._connection.run(_STAND_BY)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextlib.contextmanager
    def _reported(self) -> Any:
        """Raise errors of the server as errors of the store. A lost connection is not used again."""
        try:
            with postgres.errors(self.name):
                yield
        except StoreUnavailable:
            self._disconnect()
            raise
        except StoreError as error:
            if not is_temporary(error):
                raise
            self._disconnect()
            raise StoreUnavailable(str(error)) from error
