"""Deletes old predictions and versions from all tables that refer to them."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Final

from appliance.domain.audit import Act
from appliance.store import rows
from appliance.store.database import checkpoint, free_pages, shrink
from appliance.store.queries import QUERIES
from appliance.store.records import RETRY_STORE
from appliance.store.unindexed import Unindexed

_EMPTY: Final = rows.pack({})
_VACUUM_PAGES: Final = 2000  # returned to the disk at a time; 8 MB


class Deletions(Unindexed):
    """Methods of ``Store`` that delete data of predictions, and versions."""

    def remove_data(self, before: float, limit: int) -> asyncio.Future[list[str]]:
        """Delete input, output and logs of up to ``limit`` predictions that ended before a Unix time.

        Returns their ids. The rows of their files are deleted too; the caller deletes the files. Example
        predictions keep their data. Free pages of the database are returned to the disk.
        """

        def action(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(QUERIES["predictions_with_data"], {"before": before, "limit": limit})
            return _empty(connection, found.fetchall())

        self.index()
        return self.write(action)

    def remove_data_of(self, id: str, act: Act | None = None) -> asyncio.Future[list[str]]:
        """Delete the same as ``remove_data``, of one prediction that has ended, even if it is an example."""

        def action(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(QUERIES["prediction_with_data"], {"id": id})
            return _empty(connection, found.fetchall())

        self.index()
        return self.audited(action, act)

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

    async def compact(self) -> None:
        """Return all free pages to the disk, and empty the WAL file, so that no deleted data is in them.

        Waits until no other connection reads, such as that of a backup.
        """
        while await self.write(_shrink, alone=True):
            pass
        while not await asyncio.to_thread(checkpoint, self._path):
            await asyncio.sleep(RETRY_STORE)

    def remove_version(self, id: str, model: str, act: Act | None = None) -> asyncio.Future[list[str]]:
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
        return self.audited(action, act)


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
