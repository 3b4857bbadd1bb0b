"""Copies of the database for backups, made while an appliance writes to it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from appliance.domain.errors import StoreError
from appliance.domain.model import Adapter, Project
from appliance.store import rows
from appliance.store.bucket_objects import BUCKET_ID
from appliance.store.database import connect_reader, store_error
from appliance.store.encryption import data_key, key_file, open_database
from appliance.store.queries import QUERIES, STEPS

#: The format of databases that this code writes: the number of their migrations.
FORMAT: Final = len(STEPS)
_PAGES: Final = 2048  # copied between two calls of `progress`

#: Table -> the query for its references. A database of an earlier format may lack some of the tables.
_REFERENCES: Final = {"files": "file_paths", "adapters": "all_adapters", "projects": "all_projects"}


class Reference(NamedTuple):
    """Content outside of the database that a row refers to, relative to the data folder."""

    path: str
    may_be_folder: bool  # whether the content may be a folder


def copy(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Copy the database as it is at one moment; other processes may write to it meanwhile.

    ``progress`` gets the copied and the total number of pages.

    Raises:
        StoreError: the database is missing, damaged, or newer than this code, or the disk is full.
    """
    if not source.is_file():
        raise StoreError(f"{source}: there is no database: no appliance has used this data folder yet")
    target.unlink(missing_ok=True)
    key, wrapped = data_key(source), key_file(source)
    if key is not None:
        shutil.copyfile(wrapped, key_file(target))
    with _reading(source) as reader:
        _refuse_newer(reader, source)
        # A transaction of the reader's own: otherwise each write of another process restarts the copy.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        with _errors(target), contextlib.closing(open_database(target, key, isolation_level=None)) as copied:
            copied.execute("PRAGMA synchronous = OFF")
            reader.backup(copied, pages=_PAGES, progress=lambda _, left, total: progress(total - left, total))
            copied.execute("PRAGMA journal_mode = DELETE")  # one file, also when it is read


def check(path: Path) -> int:
    """Check all pages of a database; return its format, the number of its migrations.

    Raises:
        StoreError: the database is damaged, or newer than this code.
    """
    with _reading(path) as reader:
        found = _refuse_newer(reader, path)
        (first,) = reader.execute("PRAGMA quick_check(1)").fetchone()
    if first != "ok":
        raise StoreError(f"{path}: the database is damaged: {first}")
    return found


def references(path: Path) -> Iterator[Reference]:
    """Yield the paths of uploads, output files, trained versions and builds that the database refers to."""
    with _reading(path) as reader:
        tables = {name for (name,) in reader.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        for table, query in _REFERENCES.items():
            if table in tables:
                for (value,) in reader.execute(QUERIES[query]):
                    yield _reference(table, value)


def in_bucket(path: Path) -> set[str]:
    """Return the paths of content that is complete in the bucket of files.s3, like ``Reference.path``."""
    with _reading(path) as reader:
        query = "SELECT 1 FROM sqlite_schema WHERE name = 'bucket_objects'"
        if reader.execute(query).fetchone() is None:  # an earlier format
            return set()
        states = {f"files/{value}": state for value, state in reader.execute(QUERIES["all_objects"])}
    found = {path for path, state in states.items() if state == "stored"}
    # A version is complete only if all its files are.
    versions = {_version(path) for path in found} - {_version(path) for path in states.keys() - found}
    return found | versions - {""}


def bucket_id(path: Path) -> tuple[str | None, bool]:
    """Return the id that is also in the bucket of files.s3, and whether there are objects in the bucket."""
    with _reading(path) as reader:
        query = "SELECT 1 FROM sqlite_schema WHERE name = 'bucket_objects'"
        if reader.execute(query).fetchone() is None:  # an earlier format
            return None, False
        row = reader.execute(QUERIES["secret"], {"name": BUCKET_ID}).fetchone()
        used = reader.execute(QUERIES["count_objects"]).fetchone() is not None
    return None if row is None else row[0], used


def _version(path: str) -> str:
    """Return the folder of the trained version to which a file belongs, or ``""``."""
    return "/".join(path.split("/")[:3]) if path.startswith("files/versions/") else ""


def record_in_bucket(path: Path, contents: Iterable[str]) -> None:
    """Record in a copy of the database that contents are complete in the bucket.

    ``contents`` are paths of files, as those of ``in_bucket``.

    Raises:
        StoreError: the copy cannot be written.
    """
    given = [{"path": content.removeprefix("files/")} for content in contents]
    with _errors(path), contextlib.closing(open_database(path, data_key(path))) as copied:
        copied.executemany(QUERIES["add_stored_object"], given)
        copied.commit()


def _reference(table: str, value: Any) -> Reference:
    if table == "adapters":
        return Reference(f"files/{rows.unpack(value, Adapter).path}", may_be_folder=True)
    if table == "projects":
        return Reference(f"cog/{rows.unpack(value, Project).build}", may_be_folder=True)
    return Reference(f"files/{value}", may_be_folder=False)


def _refuse_newer(reader: sqlite3.Connection, path: Path) -> int:
    found: int = reader.execute("PRAGMA user_version").fetchone()[0]
    if found > FORMAT:
        raise StoreError(
            f"{path}: a newer appliance wrote the database (format {found}; this appliance reads up to"
            f" {FORMAT}): use that version of the appliance"
        )
    return found


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with _errors(path), contextlib.closing(connect_reader(path, data_key(path))) as reader:
        yield reader


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(error, path) from error
