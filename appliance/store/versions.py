"""The table of model versions."""

from __future__ import annotations

import asyncio
import sqlite3

import msgspec

from appliance.store import rows
from appliance.store.queries import QUERIES
from appliance.store.records import VersionRow
from appliance.store.unindexed import Unindexed


class VersionTable(Unindexed):
    """Methods of ``Store`` for model versions and their OpenAPI documents."""

    def record_version(self, row: VersionRow) -> asyncio.Future[VersionRow]:
        """Store a version, or replace its document. A stored version keeps its ``created_at``.

        Returns the stored row.
        """

        def action(connection: sqlite3.Connection) -> VersionRow:
            columns = msgspec.structs.asdict(row) | {"document": rows.pack(row.document)}
            connection.execute(QUERIES["record_version"], columns)
            return rows.version(connection.execute(QUERIES["version"], columns).fetchone())

        return self.write(action)

    def forget_versions(self, model: str, served: str) -> asyncio.Future[None]:
        """Delete the versions of ``model`` that no prediction refers to, except the version ``served``."""
        self.index()
        return self.change("forget_versions", {"model": model, "served": served})

    async def versions(self, model: str) -> list[VersionRow]:
        """Return all stored versions of the model, newest first."""

        def action(connection: sqlite3.Connection) -> list[VersionRow]:
            found = connection.execute(QUERIES["versions_of_model"], {"model": model})
            return [rows.version(row) for row in found]

        return await self.read(action)

    async def version(self, id: str, model: str) -> VersionRow | None:
        row = await self.row("version", {"id": id, "model": model})
        return None if row is None else rows.version(row)
