"""Deletes old predictions and versions from all tables that refer to them."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from typing import Final

from appliance.domain.audit import AuditEvent
from appliance.store import expired, rows
from appliance.store.database import SHRINK_PAGES, checkpoint, free_pages, shrink
from appliance.store.expired import Applies
from appliance.store.queries import QUERIES
from appliance.store.records import FIRST, Position, Removal
from appliance.store.unindexed import Unindexed

_EMPTY: Final = rows.pack({})
_ATTEMPTS: Final = 5  # to find a moment in which the WAL file can be emptied
_BETWEEN_ATTEMPTS: Final = 0.1  # seconds
_BETWEEN_STEPS: Final = 0.05  # seconds for other writes after each return of ``SHRINK_PAGES``


class Deletions(Unindexed):
    """Methods of ``Store`` that delete data of predictions, and versions."""

    async def remove_data(
        self,
        before: float,
        limit: int,
        *,
        applies: Applies = lambda model, owner: True,
        after: Position = FIRST,
    ) -> Removal:
        """Delete input, output and logs of up to ``limit`` predictions that ended before a Unix time.

        ``applies(model, owner)`` chooses the predictions, of those that ended after the position ``after``.
        The rows of their files are deleted too; the caller deletes the files. Examples, and predictions with
        a pending webhook, keep their data. Some free pages of the database are returned to the disk. Nothing
        is written if there are no such predictions.
        """
        await self.indexed()
        found = await self.read(
            lambda connection: expired.find(
                connection, "predictions_with_data", before, limit, applies, after
            )
        )
        if not found.rows:
            return Removal([], found.position)

        def action(connection: sqlite3.Connection) -> list[str]:
            query = QUERIES["prediction_may_be_emptied"]  # one may have become an example meanwhile
            removed = [
                (number, id)
                for number, id, _ in found.rows
                if connection.execute(query, {"number": number, "id": id}).fetchone()
            ]
            return _empty(connection, removed)

        return Removal(await self.write(action), found.position)

    def remove_data_of(self, id: str, event: AuditEvent | None = None) -> asyncio.Future[list[str]]:
        """Delete the same as ``remove_data``, of one prediction that has ended, even if it is an example."""

        def action(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(QUERIES["prediction_with_data"], {"id": id})
            return _empty(connection, found.fetchall())

        self.index()
        return self.audited(action, event)

    def remove_files_over(
        self, limit: int, batch: int, *, before: float = math.inf
    ) -> asyncio.Future[list[str]]:
        """Delete data of the oldest predictions until output files take at most ``limit`` bytes.

        Stops after ``batch`` predictions, and at those that ended after ``before``. Deletes the same as
        ``remove_data``, and returns the ids.
        """

        def action(connection: sqlite3.Connection) -> list[str]:
            (taken,) = connection.execute(QUERIES["output_bytes"]).fetchone()
            names = {"limit": batch, "before": before}
            oldest = connection.execute(QUERIES["oldest_with_files"], names) if taken > limit else ()
            removed: list[tuple[int, str]] = []
            for number, id, size in oldest:
                if taken <= limit:
                    break
                removed.append((number, id))
                taken -= size
            return _empty(connection, removed)

        self.index()
        return self.write(action)

    async def compact(self, pages: int | None = None) -> bool:
        """Return free pages to the disk, and empty the WAL file, so that no deleted data is in them.

        ``pages`` is the most that are returned; other writes wait only about as long as for any write. None:
        all are returned, and other writes may have to wait for connections that read.

        PostgreSQL reuses free pages itself, so nothing is done there.

        Returns whether nothing is left. Something is left while another connection reads, such as that of a
        backup, or if there were more free pages.
        """
        if self.on_server:
            return True
        gentle = pages is not None
        rest = math.inf if pages is None else pages
        while (left := await self.write(_shrink, alone=True)) and rest > SHRINK_PAGES:
            rest -= SHRINK_PAGES
            if gentle:
                await asyncio.sleep(_BETWEEN_STEPS)
        for _ in range(_ATTEMPTS if gentle else 1):
            if await asyncio.to_thread(checkpoint, self._path, self._key, gentle=gentle):
                return not left
            await asyncio.sleep(_BETWEEN_ATTEMPTS)
        return False

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
    shrink(connection)
    return free_pages(connection)


def _empty(connection: sqlite3.Connection, found: list[tuple[int, str]]) -> list[str]:
    emptied = [{"number": number, "id": id, "body": _EMPTY} for number, id in found]
    for query in ("remove_data", "empty_input", "delete_files_of_prediction"):
        connection.executemany(QUERIES[query], emptied)
    if emptied:
        shrink(connection)
    return [id for _, id in found]
