"""Opening the SQLite file: connections, migrations, and messages for errors of SQLite."""

from __future__ import annotations

import io
import os
import sqlite3
from pathlib import Path
from typing import Final, Literal

from appliance.domain import usage
from appliance.domain.errors import DiskFull, StoreError
from appliance.store import rows
from appliance.store.owner import lock_file
from appliance.store.queries import STEPS

Durability = Literal["full", "normal"]

#: How long a statement waits for another process's write, e.g. `appliance token create`.
BUSY_TIMEOUT: Final = 5.0  # seconds

_REMEDIES: Final = {
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it from a backup, or move it and its"
    " -wal and -shm files away to start empty (`sqlite3 FILE .recover` may save what is in it)",
    sqlite3.SQLITE_NOTADB: "the file is not a database: restore it from a backup, or move it and"
    " its -wal and -shm files away to start empty",
    sqlite3.SQLITE_BUSY: "another process has been writing for too long: try again",
    sqlite3.SQLITE_READONLY: "it cannot be written: check the owner of the data folder",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check the owner of the data folder, and the limit of open"
    " files",
}
_HEADER: Final = 100  # bytes

#: SQLite's errors for a full quota, and for shared memory without space.
_UNWRITTEN: Final = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}


def store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """Translate ``error`` to a ``StoreError`` that says what to do."""
    code = getattr(error, "sqlite_errorcode", 0)  # missing if the API was misused
    remedy = _REMEDIES.get(code & 0xFF)  # the primary result code
    if code & 0xFF == sqlite3.SQLITE_FULL or code in _UNWRITTEN:
        return DiskFull(f"{path}: the disk, or a quota on it, is full: free some space ({error})")
    return StoreError(f"{path}: {remedy} ({error})" if remedy else f"{path}: {error}")


def connect(path: Path, durability: Durability) -> sqlite3.Connection:
    """Return a connection that can write, for one thread at a time; the caller begins transactions.

    Raises:
        StoreError: the file cannot be opened, is not a database, is truncated, or is on a file system
            without WAL support.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_truncated(path)
        # SQLite gives its -wal and -shm files the mode of the database: inputs and outputs are private.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise StoreError(f"{path}: cannot open the database: {exc.strerror}") from exc
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        # Affects a new file only. Free pages can then be returned to the disk in small steps.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute(f"PRAGMA synchronous = {durability}")
        # Truncates the WAL file to this many bytes after a burst; by default it keeps its largest size.
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except sqlite3.Error as exc:
        connection.close()
        raise store_error(exc, path) from exc
    if mode != "wal":
        connection.close()
        raise StoreError(f"{path}: no WAL support on this file system: put the data folder on a local disk")
    return connection


def _refuse_truncated(path: Path) -> None:
    """Raise for a truncated file, which SQLite would treat as new, or report much later.

    Raises:
        StoreError: the file is shorter than its header says, or empty.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        return
    wal = path.with_name(f"{path.name}-wal")
    wal_has_data = wal.exists() and wal.stat().st_size > 0
    with path.open("rb") as file:
        header = file.read(_HEADER)
        size = os.fstat(file.fileno()).st_size
    if not header:
        # SQLite writes the header before it creates files beside the database, and removes the -wal file of a
        # database without a header.
        expected = 1 if wal_has_data or lock_file(path).exists() else 0
    elif wal_has_data or len(header) < _HEADER or not header.startswith(b"SQLite format 3\0"):
        return  # the rest may be in the -wal file; SQLite itself refuses files that are no database
    else:  # https://www.sqlite.org/fileformat.html: size and number of pages
        page = int.from_bytes(header[16:18], "big")
        expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if size < expected:
        raise StoreError(
            f"{path}: the file is truncated: it has {size:,} bytes, fewer than the database had; it was not"
            " changed: restore it from a backup, or move it and its -wal and -shm files away to start empty"
        )


def _refuse_foreign(connection: sqlite3.Connection, path: Path, found: int) -> None:
    """Raise ``StoreError`` for another program's database, before tables are created in it."""
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if bool(names) != (found > 0) or (found > 0 and "predictions" not in names):
        raise StoreError(
            f"{path}: the database is another program's (its tables: {', '.join(sorted(names)) or 'none'});"
            " nothing in it was changed: move it away, or use another data folder"
        )


def connect_reader(path: Path) -> sqlite3.Connection:
    """Return a read-only connection, for one thread at a time. The database must exist."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


def upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Run the migrations that the database has not had, all of them or none.

    Raises:
        StoreError: a newer appliance wrote the database, or a migration failed.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")  # two processes may open a new database at once
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > len(STEPS):
            raise StoreError(
                f"{path}: written by a newer appliance (format {found}, this one knows {len(STEPS)}):"
                " upgrade the appliance, or use another data folder"
            )
        _refuse_foreign(connection, path, found)
        _define_metric_functions(connection)
        for step in STEPS[found:]:
            for statement in statements(step):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(STEPS)}")
        connection.execute("COMMIT")
    except sqlite3.Error as exc:
        raise store_error(exc, path) from exc
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _define_metric_functions(connection: sqlite3.Connection) -> None:
    """Define SQL functions that migrations read metrics with: seconds as microseconds, and counts."""
    for name, read in (("metric_us", usage.microseconds), ("metric_count", usage.count)):
        connection.create_function(
            name, 2, lambda body, metric, read=read: read(rows.metric(body, metric)), deterministic=True
        )


def shrink(connection: sqlite3.Connection, pages: int) -> None:
    """Return up to ``pages`` free pages to the disk; none if the file was created without auto_vacuum."""
    (empty,) = connection.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(empty, pages)):
        # One at a time: Python's sqlite3 stops a statement without result columns after its first step.
        connection.execute("PRAGMA incremental_vacuum(1)")


def statements(script: str) -> list[str]:
    """Split an SQL script into its statements, each of which begins on a new line.

    ``executescript`` is no alternative, because it commits the open transaction first.
    """
    found: list[str] = []
    statement = ""
    for line in io.StringIO(script):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found
