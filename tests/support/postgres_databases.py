"""A pool of PostgreSQL databases with the tables of the store.

Databases are reused, because PostgreSQL takes 0.2 s of CPU to create and drop one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg

from appliance.store import Store
from tests.support.postgres_server import PostgresServer

_TEMPLATE: Final = "empty"
_END_OTHER_SESSIONS: Final = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
#: A digest of everything in a database but its rows.
_DEFINITIONS: Final = """
    SELECT md5(string_agg(definition, ';' ORDER BY definition)) FROM (
        SELECT concat_ws(' ', oid, relname, relkind, reloptions) FROM pg_class
            WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', attrelid, attnum, attname, atttypid, attnotnull, attisdropped)
            FROM pg_attribute JOIN pg_class ON attrelid = pg_class.oid
            WHERE relnamespace = 'public'::regnamespace AND attnum > 0
        UNION ALL SELECT concat_ws(' ', adrelid, adnum, pg_get_expr(adbin, adrelid)) FROM pg_attrdef
        UNION ALL SELECT concat_ws(' ', oid, pg_get_constraintdef(oid)) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', oid, pg_get_functiondef(oid)) FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT concat_ws(' ', oid, tgname, tgenabled) FROM pg_trigger
        UNION ALL SELECT concat_ws(' ', oid, nspname) FROM pg_namespace
            WHERE nspname !~ '^pg_(toast_)?temp_'
        UNION ALL SELECT concat_ws(' ', oid, extname) FROM pg_extension
        UNION ALL SELECT concat_ws(' ', setrole, setconfig) FROM pg_db_role_setting
            JOIN pg_database ON setdatabase = pg_database.oid WHERE datname = current_database()
    ) AS definitions (definition)
"""
_TABLES: Final = (
    "SELECT quote_ident(relname) FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname"
)
_SEQUENCES: Final = (
    "SELECT quote_ident(sequencename), start_value FROM pg_sequences WHERE schemaname = 'public'"
)


class Databases:
    """The databases of a server. ``give_back`` empties one; ``take`` returns one that is empty."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._created = 0
        self._free: list[str] = []
        self._definitions = ""
        self._initial_rows: dict[str, bytes] = {}  # the rows of a new database by table, as COPY writes them
        self._find_rows = ""  # a statement that returns the tables with rows
        self._restart = ""  # a statement that restarts all sequences

    async def take(self, path: Path) -> str:
        """Return the name of an empty database. ``path`` is the home of the store that creates the tables."""
        if self._free:
            return self._free.pop()
        if not self._created:
            self.server.query(f"CREATE DATABASE {_TEMPLATE}")
            store = Store(path, url=self.server.url(_TEMPLATE), durability="normal")
            await store.open()
            await store.close()
            self._read_template()
        self._created += 1
        name = f"test_{self._created}"
        self.server.query(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return name

    def give_back(self, name: str) -> None:
        """Empty a database, or drop it if a test has changed more than its rows."""
        with psycopg.connect(self.server.url(name), autocommit=True) as connection:
            connection.execute(_END_OTHER_SESSIONS)
            unchanged = connection.execute(_DEFINITIONS).fetchall() == [(self._definitions,)]
            if unchanged:
                self._empty(connection)
        if unchanged:
            self._free.append(name)
        else:
            self.server.query(f"DROP DATABASE {name} WITH (FORCE)")

    def _read_template(self) -> None:
        with psycopg.connect(self.server.url(_TEMPLATE), autocommit=True) as connection:
            ((self._definitions,),) = connection.execute(_DEFINITIONS).fetchall()
            tables = [name for (name,) in connection.execute(_TABLES)]
            restarts = [f"setval('{name}', {start}, false)" for name, start in connection.execute(_SEQUENCES)]
            self._find_rows = " UNION ALL ".join(
                f"SELECT '{table}' WHERE EXISTS (SELECT FROM {table})" for table in tables
            )
            self._restart = f"SELECT {', '.join(restarts)}"
            for (table,) in connection.execute(self._find_rows.encode()).fetchall():
                with connection.cursor().copy(f"COPY {table} TO STDOUT".encode()) as rows:
                    self._initial_rows[table] = b"".join(bytes(each) for each in rows)

    def _empty(self, connection: psycopg.Connection) -> None:
        tables = [table for (table,) in connection.execute(self._find_rows.encode())]
        deletions = [f"DELETE FROM {table}" for table in tables]
        statements = ["BEGIN", "SET LOCAL session_replication_role = replica", *deletions, self._restart]
        connection.execute("; ".join(statements).encode())  # replica: run no triggers
        for table, rows in self._initial_rows.items():
            with connection.cursor().copy(f"COPY {table} FROM STDIN".encode()) as copy:
                copy.write(rows)
        connection.execute("COMMIT")
