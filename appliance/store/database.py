"""Opens the SQLite file: connections, migrations, and messages for SQLite errors."""

from __future__ import annotations

import contextlib
import io
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from appliance.domain import usage
from appliance.domain.errors import DiskFull, StoreError, StoreUnavailable, UnstorableValue
from appliance.store import rows
from appliance.store.encryption import open_database
from appliance.store.owner import lock_file
from appliance.store.postgres_connection import ConnectionLost, OwnershipLost, PostgresConnection
from appliance.store.queries import STEPS

Durability = Literal["full", "normal"]

#: Seconds that a statement waits for a write of another process, such as `appliance token create`.
BUSY_TIMEOUT: Final = 5.0

#: Seconds that `checkpoint` waits for other connections. Meanwhile no connection can write.
_CHECKPOINT_PATIENCE: Final = 0.2
_GENTLE_PATIENCE: Final = 0.01  # the same for a gentle `checkpoint`: about the time of one transaction

#: Free pages that `shrink` returns to the disk: 800 kB, about 5 ms, in which no connection can write.
SHRINK_PAGES: Final = 200

_REMEDIES: Final = {
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it from a backup, or move it and its"
    " -wal and -shm files away to start empty (`sqlite3 FILE .recover` may save its contents)",
    sqlite3.SQLITE_NOTADB: "the file is not a database: restore it from a backup, or move it and"
    " its -wal and -shm files away to start empty",
    sqlite3.SQLITE_BUSY: f"another process held the write lock for {BUSY_TIMEOUT:.0f} s: try again",
    sqlite3.SQLITE_READONLY: "the file cannot be written: check the owner of the data folder",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened: check the owner of the data folder, and the limit of"
    " open files (ulimit -n)",
}
_HEADER: Final = 100  # bytes of an SQLite file's header

#: SQLite's error codes for a full quota, and for a full disk while it creates its -shm file.
_NO_SPACE: Final = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE}


def store_error(error: sqlite3.Error, path: Path | str) -> StoreError:
    """Convert an error of a database to a ``StoreError`` with a remedy, or to one of its subclasses.

    ``path`` is the file, or the URL of the PostgreSQL database without the password.
    """
    if isinstance(error, ConnectionLost):
        return StoreUnavailable(f"{path}: cannot connect to the database: {error}")
    if isinstance(error, OwnershipLost):
        return StoreUnavailable(f"{path}: {error}")
    if isinstance(error, sqlite3.DataError):
        return UnstorableValue("a value cannot be stored: it is too long")
    code = getattr(error, "sqlite_errorcode", 0)  # missing in errors about wrong use of the API
    remedy = _REMEDIES.get(code & 0xFF)  # the primary result code
    if code & 0xFF == sqlite3.SQLITE_FULL or code in _NO_SPACE:
        return DiskFull(f"{path}: the disk, or a quota on it, is full: free some space ({error})")
    return StoreError(f"{path}: {remedy} ({error})" if remedy else f"{path}: {error}")


def is_busy(error: BaseException | None) -> bool:
    """Return whether a statement has waited in vain for the write lock."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def is_temporary(error: StoreError) -> bool:
    """Return whether a later attempt may succeed: a server did not answer, or a lock was held too long."""
    return isinstance(error, StoreUnavailable) or is_busy(error.__cause__)


def connect(path: Path, durability: Durability, key: bytes | None = None) -> sqlite3.Connection:
    """Return a connection that can write, for use by one thread at a time. The caller begins transactions.

    ``key`` is that of an encrypted database.

    Raises:
        StoreError: the file cannot be opened, is not a database, is truncated, or is on a file system
            without WAL support.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_truncated(path)
        # Inputs and outputs are private. SQLite gives its -wal and -shm files the mode of this file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as exc:
        raise StoreError(f"{path}: cannot open the database: {exc.strerror}") from exc
    connection = open_database(path, key, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        # Lets `shrink` return free pages to the disk in small steps. It only affects a new file.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute(f"PRAGMA synchronous = {durability}")
        # Overwrites deleted rows with zeros, but not pages that become free: that would be one more write of
        # each page. `shrink` returns free pages to the disk.
        connection.execute("PRAGMA secure_delete = FAST")
        # In bytes. Without a limit, the WAL file keeps the largest size that it ever had.
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except sqlite3.Error as exc:
        connection.close()
        raise store_error(exc, path) from exc
    if mode != "wal":
        connection.close()
        raise StoreError(
            f"{path}: the file system does not support SQLite's WAL mode: put the data folder on a local disk"
        )
    return connection


def _refuse_truncated(path: Path) -> None:
    """Raise for a truncated file. SQLite would take it for a new file, or report the damage much later.

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
        # An empty file is new only if there is neither a -wal file with data nor a lock file: both are
        # created after SQLite has written the header.
        expected = 1 if wal_has_data or lock_file(path).exists() else 0
    elif wal_has_data or len(header) < _HEADER or not header.startswith(b"SQLite format 3\0"):
        return  # pages may be only in the -wal file; SQLite itself refuses files that are not databases
    else:  # https://www.sqlite.org/fileformat.html: size and number of pages
        page = int.from_bytes(header[16:18], "big")
        expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if size < expected:
        raise StoreError(
            f"{path}: the file is truncated: it has {size:,} bytes, fewer than its database had;"
            " it was not changed: restore it from a backup,"
            " or move it and its -wal and -shm files away to start empty"
        )


def _refuse_foreign(connection: sqlite3.Connection, path: Path, found: int) -> None:
    """Raise ``StoreError`` for a database of another program. The caller has created no tables yet."""
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if bool(names) != (found > 0) or (found > 0 and "predictions" not in names):
        raise StoreError(
            f"{path}: the database belongs to another program (tables: {', '.join(sorted(names)) or 'none'})"
            " and was not changed: move it away, or use another data folder"
        )


def connect_reader(path: Path, key: bytes | None = None) -> sqlite3.Connection:
    return open_database(
        f"{path.absolute().as_uri()}?mode=ro",
        key,
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


def upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """Run the missing migrations of the database in one transaction.

    Raises:
        StoreError: a newer appliance wrote the database, or a migration failed.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")  # two processes may open a new database at once
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > len(STEPS):
            raise StoreError(
                f"{path}: a newer appliance wrote the database (format {found}; this appliance reads up to"
                f" {len(STEPS)}): upgrade the appliance, or use another data folder"
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
    for name, read in (("metric_us", usage.microseconds), ("metric_count", usage.count)):
        connection.create_function(
            name, 2, lambda body, metric, read=read: read(rows.metric(body, metric)), deterministic=True
        )


@contextlib.contextmanager
def overwriting(connection: sqlite3.Connection) -> Iterator[None]:
    """Overwrite pages that become free with zeros, too; PostgreSQL has nothing like this."""
    if isinstance(connection, PostgresConnection):
        yield
        return
    connection.execute("PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        connection.execute("PRAGMA secure_delete = FAST")


def checkpoint(path: Path, key: bytes | None = None, *, gentle: bool = False) -> bool:
    """Copy the WAL file into the database and empty the file, which has old content of changed pages.

    Most is copied while other connections can write. Emptying the file has to wait for other connections that
    read, and meanwhile no connection can write. With ``gentle`` that takes no longer than a transaction.

    Returns whether the file was emptied: it is not while another connection reads or writes for too long.

    Raises:
        StoreError: the database cannot be opened or written.
    """
    patience = _GENTLE_PATIENCE if gentle else _CHECKPOINT_PATIENCE
    try:
        with contextlib.closing(open_database(path, key, timeout=patience)) as connection:
            busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if gentle and (busy or copied < frames):  # a connection reads an old state of the database
                return False
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as exc:
        raise store_error(exc, path) from exc
    return not busy


def free_pages(connection: sqlite3.Connection) -> int:
    """Return the number of free pages that `shrink` can return to the disk."""
    if isinstance(connection, PostgresConnection):
        return 0
    (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    (count,) = connection.execute("PRAGMA freelist_count").fetchone()
    return count if mode else 0


def shrink(connection: sqlite3.Connection) -> None:
    """Return up to ``SHRINK_PAGES`` free pages to the disk, if the file was created with auto_vacuum.

    PostgreSQL reuses them itself (autovacuum).
    """
    if isinstance(connection, PostgresConnection):
        return
    (empty,) = connection.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(empty, SHRINK_PAGES)):
        # One at a time: Python's sqlite3 stops a statement without result columns after its first step.
        connection.execute("PRAGMA incremental_vacuum(1)")


def stream(
    connection: sqlite3.Connection, query: str, parameters: dict[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query, which are read while they are needed, in the open transaction."""
    if isinstance(connection, PostgresConnection):
        return connection.stream(query, parameters)
    return connection.execute(query, parameters)


def statements(script: str) -> list[str]:
    """Split an SQL script into statements, each of which must begin on a new line.

    ``executescript`` cannot be used instead, because it commits the open transaction.
    """
    found: list[str] = []
    statement = ""
    for line in io.StringIO(script):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found
