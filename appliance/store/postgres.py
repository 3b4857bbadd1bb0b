"""A PostgreSQL database: its URL, connections to it, and its migrations."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from appliance.domain.errors import StoreError
from appliance.store.database import BUSY_TIMEOUT, Durability, store_error
from appliance.store.postgres_connection import PostgresConnection
from appliance.store.postgres_queries import STEPS

if TYPE_CHECKING:
    import psycopg

_OLDEST: Final = 140000  # PostgreSQL 14, as psycopg gives versions
_CONNECT_TIMEOUT: Final = 5  # seconds; for each address of the server
#: Milliseconds without an acknowledgement by the machine of the server, after which a connection is lost.
_READ_TIMEOUT: Final = 15_000
#: Settings of each session. The server notices within half a minute that a client is gone.
_SESSION: Final = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25s",
    "lock_timeout": f"{BUSY_TIMEOUT:.0f}s",
    # Defaults of the database or the user: the lock of the owner ends with its session.
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "statement_timeout": "0",
    "client_encoding": "UTF8",
}
_FORMAT: Final = "SELECT steps FROM store_format"
#: Without views, which extensions such as pg_stat_statements have.
_TABLES: Final = (
    "SELECT table_name FROM information_schema.tables"
    " WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'"
)


class Server:
    """A database on a server. ``name`` is its URL without the password, for messages."""

    def __init__(self, url: str, durability: Durability) -> None:
        self._url = url
        self._durability = durability
        self.name = public_url(url)

    def connect(self, *, writes: bool) -> psycopg.Connection:
        """Open a connection of psycopg in autocommit mode.

        Raises:
            psycopg.Error: the server cannot be reached, or refuses the user.
            StoreError: the server is too old, or the encoding of the database is not UTF8.
        """
        import psycopg

        from appliance.store.postgres_types import ADAPTERS

        connection: psycopg.Connection = psycopg.connect(
            self._url,
            autocommit=True,
            context=ADAPTERS,
            application_name="appliance" if writes else "appliance reader",
            connect_timeout=_CONNECT_TIMEOUT,
            tcp_user_timeout=_READ_TIMEOUT,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=1,
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: psycopg.Connection) -> None:
        if connection.info.server_version < _OLDEST:
            version = connection.info.server_version // 10000
            raise StoreError(f"{self.name}: the server is PostgreSQL {version}: use 14 or later")
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise StoreError(
                f"{self.name}: the encoding of the database is {encoding}: create a database for the"
                " appliance with ENCODING 'UTF8' TEMPLATE template0"
            )
        settings = dict(_SESSION)
        if self._durability == "normal":
            settings["synchronous_commit"] = "off"
        connection.execute("; ".join(f"SET {name} = '{value}'" for name, value in settings.items()))
        connection.cursor_factory = _cursor_class()

    def open(self) -> PostgresConnection:
        """Open a connection that writes into the tables of the store.

        Raises:
            StoreError: psycopg is not installed, or the server cannot be reached, or refuses the user.
        """
        require(self.name)
        with errors(self.name):
            return PostgresConnection(self)

    def reader(self) -> PostgresConnection:
        """Return a connection that only reads. It connects when it is first used."""
        return PostgresConnection(self, reads=True)


def _cursor_class() -> Any:
    import psycopg

    class Cursor(psycopg.Cursor[Any]):
        """A cursor that fetches values in their binary form, and has the attribute ``lastrowid``."""

        @property
        def lastrowid(self) -> int:
            row = self.fetchone()
            assert row is not None, "the statement has RETURNING number"
            return int(row[0])

    return Cursor


def require(name: str) -> None:
    """Raise StoreError if psycopg is not installed."""
    try:
        import psycopg  # noqa: F401 - only tried
    except ImportError as error:
        raise StoreError(
            f"{name}: store.url in models.yaml needs the package psycopg: install appliance[postgres]"
            f" ({error})"
        ) from error


def public_url(url: str) -> str:
    """Return a URL without password and parameters."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}"


@contextlib.contextmanager
def errors(name: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error, name) from error


def upgrade(connection: PostgresConnection, name: str) -> None:
    """Run the missing migrations of the database in one transaction.

    Raises:
        StoreError: a newer appliance or another program wrote the database, or a migration failed.
    """
    with errors(name):
        try:
            connection.begin_upgrade()
            tables = {row[0] for row in connection.run(_TABLES)}
            if tables and not {"store_format", "predictions"} <= tables:
                raise StoreError(
                    f"{name}: the database belongs to another program (tables: {', '.join(sorted(tables))})"
                    " and was not changed: create a database for the appliance"
                )
            found = connection.run(_FORMAT).fetchone()[0] if tables else 0
            if found > len(STEPS):
                raise StoreError(
                    f"{name}: a newer appliance wrote the database (format {found}; this appliance reads"
                    f" up to {len(STEPS)}): upgrade the appliance, or use another database"
                )
            for step in STEPS[found:]:
                connection.run(step)
            connection.run(f"UPDATE store_format SET steps = {len(STEPS)}")  # noqa: S608 - a number
            connection.execute("COMMIT")
        finally:
            connection.rollback()
