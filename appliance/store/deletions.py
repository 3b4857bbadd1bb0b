"""Deletes old predictions and versions from all tables that refer to them."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Callable
from typing import Final

from appliance.domain.audit import AuditEvent
from appliance.store import rows
from appliance.store.database import checkpoint, free_pages, shrink
from appliance.store.queries import QUERIES
from appliance.store.records import Position, Removal
from appliance.store.unindexed import Unindexed

_EMPTY: Final = rows.pack({})
_SCANNED: Final = 2000  # predictions that one transaction looks at; a few milliseconds
#: The position before all predictions.
FIRST: Final = Position(-math.inf, 0)
_VACUUM_PAGES: Final = 2000  # returned to the disk at a time; 8 MB


class Deletions(Unindexed):
    """Methods of ``Store`` that delete data of predictions, and versions."""

    def remove_data(
        self,
        before: float,
        limit: int,
        *,
        applies: Callable[[str, str], bool] = lambda model, owner: True,
        after: Position = FIRST,
    ) -> asyncio.Future[Removal]:
        """Delete input, output and logs of up to ``limit`` predictions that ended before a Unix time.

        ``applies(model, owner)`` chooses the predictions, of those that ended after the position ``after``.
        The rows of their files are deleted too; the caller deletes the files. Examples, and predictions with
        a pending webhook, keep their data. Free pages of the database are returned to the disk.
        """
        start = {"after": after.completed_at, "after_number": after.number}
        query = {"before": before, **start, "limit": _SCANNED}

        def action(connection: sqlite3.Connection) -> Removal:
            removed: list[tuple[int, str]] = []
            position, count = None, 0
            found = connection.execute(QUERIES["predictions_with_data"], query)
            for count, (number, id, model, owner, completed_at) in enumerate(found, 1):  # noqa: B007 - used below
                position = Position(completed_at, number)
                if applies(model, owner):
                    removed.append((number, id))
                if len(removed) == limit:
                    break
            more = len(removed) == limit or count == _SCANNED
            return Removal(_empty(connection, removed), position if more else None)

        self.index()
        return self.write(action)

    def remove_data_of(self, id: str, event: AuditEvent | None = None) -> asyncio.Future[list[str]]:
        """Delete the same as ``remove_data``, of one prediction that has ended, even if it is an example."""

        def action(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(QUERIES["prediction_with_data"], {"id": id})
            return _empty(connection, found.fetchall())

        self.index()
        return self.audited(action, event)

    def remove_files_over(self, limit: int, batch: int) -> asyncio.Future[list[str]]:
        """Delete data of the oldest predictions until output files take at most ``limit`` bytes.

        Stops after ``batch`` predictions. Deletes and returns the same as ``remove_data``.
        """

        def action(connection: sqlite3.Connection) -> list[str]:
            (taken,) = connection.execute(QUERIES["output_bytes"]).fetchone()
            oldest = (
                connection.execute(QUERIES["oldest_with_files"], {"limit": batch}) if taken > limit else ()
            )
            removed: list[tuple[int, str]] = []
            for number, id, size in oldest:
                if taken <= limit:
                    break
                removed.append((number, id))
                taken -= size
            return _empty(connection, removed)

        self.index()
        return self.write(action)

    async def compact(self) -> bool:
        """Return all free pages to the disk, and empty the WAL file, so that no deleted data is in them.

        Returns whether that was possible: it is not while another connection reads, such as that of a backup.
        """
        while await self.write(_shrink, alone=True):
            pass
        return await asyncio.to_thread(checkpoint, self._path, self._key)

    def remove_version(
        self, id: str, model: str, event: AuditEvent | None = None
    ) -> asyncio.Future[list[str]]:
        """Delete a version and its predictions; return the ids of the predictions."""

        def action(connection: sqlite3.Connection) -> list[str]:
            names = {"id": id, "model": model}
            found = connection.execute(QUERIES["predictions_of_version"], names).fetchall()
            removed = _empty(connection, found)
            connection.executemany(QUERIES["delete_prediction"], [{"number": number} for number, _ in found])
            for query in ("delete_version", "delete_adapter", "delete_project"):
                connection.execute(QUERIES[query], names)
            return removed

        self.index()
        return self.audited(action, event)


def _shrink(connection: sqlite3.Connection) -> int:
    """Return some free pages to the disk; return how many are left."""
    shrink(connection, _VACUUM_PAGES)
    return free_pages(connection)


def _empty(connection: sqlite3.Connection, found: list[tuple[int, str]]) -> list[str]:
    emptied = [{"number": number, "id": id, "body": _EMPTY} for number, id in found]
    for query in ("remove_data", "empty_input", "delete_files_of_prediction"):
        connection.executemany(QUERIES[query], emptied)
    if emptied:
        shrink(connection, _VACUUM_PAGES)
    return [id for _, id in found]
