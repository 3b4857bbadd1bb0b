"""Appends records to the audit log, and keeps the newest record's hash in a file beside the database."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from pathlib import Path

from appliance.domain import audit
from appliance.domain.audit import START, AuditEvent, AuditRecord, ChainPosition
from appliance.domain.errors import StoreError
from appliance.store.queries import QUERIES

_log = logging.getLogger(__name__)


def head_file(database: Path, *, on_server: bool = False) -> Path:
    """Return the file for the hash of the newest record; a database on a server has a file of its own."""
    return database.with_name("audit-postgresql.head" if on_server else "audit.head")


def append(connection: sqlite3.Connection, event: AuditEvent) -> AuditRecord:
    """Insert the record of ``event`` in the open transaction."""
    record = audit.make(event, end_of(connection), time.time())
    columns = {"number": record.number, "body": record.body, "previous": record.previous, "hash": record.hash}
    connection.execute(QUERIES["insert_audit"], columns)
    return record


def end_of(connection: sqlite3.Connection) -> ChainPosition:
    """Return the newest record, or the last deleted one if there are no others."""
    row = connection.execute(QUERIES["audit_end"]).fetchone()
    return position(connection, "deleted") if row is None else ChainPosition(*row)


def position(connection: sqlite3.Connection, name: str) -> ChainPosition:
    row = connection.execute(QUERIES["audit_position"], {"name": name}).fetchone()
    return START if row is None else ChainPosition(*row)


def contains(connection: sqlite3.Connection, end: ChainPosition) -> bool:
    """Return whether the chain has this record, or had it before it was deleted because of its age."""
    deleted = position(connection, "deleted")
    if end.number <= deleted.number:
        return end.number < deleted.number or end == deleted
    row = connection.execute(QUERIES["audit_hash"], {"number": end.number}).fetchone()
    return row is not None and row[0] == end.hash


def read_head(file: Path) -> ChainPosition | None:
    """Return the newest record that the file knows; None if there is no file.

    Raises:
        StoreError: the file cannot be read, or is not of this form.
    """
    try:
        return _parsed(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{file}: the hash of the newest audit record cannot be read: {error}") from error


def write_head(file: Path, connection: sqlite3.Connection) -> None:
    """Write the newest record into the file, unless the record there is missing in the database.

    So the file continues to prove that records were removed, even after new ones have been added.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # `appliance token` writes the file too
            content = os.pread(descriptor, 200, 0)
            known = _parsed(content) if content else START
            end = end_of(connection)
            if not contains(connection, known):
                _log.error(
                    "the audit log does not contain record %d, which %s names: records were removed or "
                    "changed: `appliance audit verify` says more",
                    *(known.number, file),
                )
            elif end.number > known.number:
                # One write of a fixed length: after a crash the file has the old or the new content.
                os.pwrite(descriptor, f"{end.number:020} {end.hash}\n".encode(), 0)
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    except (OSError, ValueError, sqlite3.Error) as error:
        _log.error("%s: the hash of the newest audit record cannot be written: %s", file, error)


def _parsed(content: bytes) -> ChainPosition:
    number, hash = content.decode("ascii").split()
    return ChainPosition(int(number), hash)
