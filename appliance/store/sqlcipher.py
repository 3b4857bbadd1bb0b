"""Connections to encrypted databases with SQLCipher, whose errors are those of ``sqlite3``.

Imported only if a database is encrypted.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlcipher3 import dbapi2


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except dbapi2.Error as error:
        kind: type[sqlite3.Error] = getattr(sqlite3, type(error).__name__, sqlite3.DatabaseError)
        translated = kind(*error.args)
        translated.sqlite_errorcode = getattr(error, "sqlite_errorcode", 0)
        translated.sqlite_errorname = getattr(error, "sqlite_errorname", "")
        raise translated from error


class _Cursor(dbapi2.Cursor):  # type: ignore[misc]  # the library has no types
    def execute(self, *arguments: Any) -> Any:
        with _translated():
            return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Any:
        with _translated():
            return super().executemany(*arguments)

    def fetchone(self) -> Any:
        with _translated():
            return super().fetchone()

    def fetchall(self) -> Any:
        with _translated():
            return super().fetchall()

    def __next__(self) -> Any:
        with _translated():
            return super().__next__()


class _Connection(dbapi2.Connection):  # type: ignore[misc]  # the library has no types
    def cursor(self, *_: Any) -> Any:
        with _translated():
            return super().cursor(_Cursor)

    def execute(self, *arguments: Any) -> Any:
        return self.cursor().execute(*arguments)

    def executemany(self, statement: str, parameters: Iterable[Any]) -> Any:
        return self.cursor().executemany(statement, parameters)

    def rollback(self) -> None:
        with _translated():
            super().rollback()

    def backup(self, *arguments: Any, **options: Any) -> None:
        with _translated():
            super().backup(*arguments, **options)


def connect(database: str, key: bytes, **options: Any) -> sqlite3.Connection:
    """Return a connection to a database that ``key`` encrypts."""
    with _translated():
        connection: sqlite3.Connection = dbapi2.connect(database, factory=_Connection, **options)
    connection.execute(f'PRAGMA key = "{_literal(key)}"')  # the first statement of a connection
    return connection


def export(source: Path, target: Path, key: bytes) -> None:
    """Copy a database that is not encrypted to the new, encrypted database ``target``."""
    with contextlib.closing(dbapi2.connect(str(source), factory=_Connection, isolation_level=None)) as clear:
        clear.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        (version,) = clear.execute("PRAGMA user_version").fetchone()
        clear.execute("ATTACH DATABASE ? AS encrypted KEY ?", (str(target), _literal(key)))
        clear.execute("PRAGMA encrypted.auto_vacuum = INCREMENTAL")
        clear.execute("SELECT sqlcipher_export('encrypted')").fetchall()
        clear.execute(f"PRAGMA encrypted.user_version = {version}")
        clear.execute("DETACH DATABASE encrypted")


def _literal(key: bytes) -> str:
    """Return the key in SQLCipher's syntax for raw keys, which are used without key derivation."""
    return f"x'{key.hex()}'"
