"""The table of uploads and output files. Their contents are on disk or in a bucket, not in the database."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from typing import Any

import msgspec

from appliance.domain.file import File
from appliance.store import rows
from appliance.store.bucket_objects import BucketTable
from appliance.store.connections import Connections
from appliance.store.queries import QUERIES
from appliance.store.records import Cursor

Files = list[File]


class FileTable:
    """Rows of uploads and output files, available as ``Store.files``."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.objects = BucketTable(connections)

    def add(self, file: File) -> asyncio.Future[None]:
        """Store the row of a file; do nothing if there is a row with its id."""
        columns = msgspec.structs.asdict(file) | {"metadata": rows.pack(file.metadata)}
        return self._connections.change("insert_file", columns)

    async def get(self, id: str) -> File | None:
        row = await self._connections.row("file", {"id": id})
        return None if row is None else _file(row)

    async def exists(self, path: str) -> bool:
        """Return whether there is a row of a file with this path, relative to the folder of files."""
        # uploads/<id of the file>, or outputs/<id of the prediction>/...
        _, _, rest = path.partition("/")
        parameters = {"path": path, "id": rest.partition("/")[0]}
        return await self._connections.row("file_with_path", parameters) is not None

    async def uploads(self, owner: str, *, cursor: Cursor | None = None, limit: int = 100) -> Files:
        """Return up to ``limit`` uploads of an owner, newest first; ``cursor.backwards`` is ignored."""
        place = (math.inf, "") if cursor is None else (cursor.created_at, cursor.id)
        columns = {"owner": owner, "place_created_at": place[0], "place_id": place[1], "limit": limit}
        return await self._list("uploads", columns)

    async def expired(self, now: float, limit: int) -> Files:
        """Return up to ``limit`` uploads that expired before ``now`` (Unix seconds)."""
        return await self._list("expired_uploads", {"now": now, "limit": limit})

    async def uploaded_bytes(self) -> int:
        return await self._connections.read(
            lambda connection: int(connection.execute(QUERIES["uploaded_bytes"]).fetchone()[0])
        )

    async def paths(self) -> set[str]:
        """Return the paths of all files, relative to the folder of files."""
        return await self._connections.read(
            lambda connection: {row[0] for row in connection.execute(QUERIES["file_paths"])}
        )

    async def unfinished_predictions(self) -> set[str]:
        """Return the ids of the predictions that may still make output files."""
        return await self._connections.read(
            lambda connection: {row[0] for row in connection.execute(QUERIES["unfinished_ids"])}
        )

    async def unfinished_outputs(self) -> Files:
        """Return the output files of unfinished predictions."""
        return await self._list("unfinished_outputs", {})

    async def output_paths(self) -> dict[str, str]:
        """Return the ids of predictions by the paths of their output files, without those of trainings."""
        return await self._connections.read(
            lambda connection: dict(connection.execute(QUERIES["output_paths"]).fetchall())
        )

    def remove(self, id: str) -> asyncio.Future[None]:
        return self._connections.change("delete_file", {"id": id})

    async def known_secret(self, name: str) -> str | None:
        """Return the secret stored under ``name``; None if there is none."""
        row = await self._connections.row("secret", {"name": name})
        return None if row is None else str(row[0])

    async def secret(self, name: str, fresh: str) -> str:
        """Return the secret stored under ``name``; if there is none, store and return ``fresh``."""
        await self._connections.change("insert_secret", {"name": name, "value": fresh})
        row = await self._connections.row("secret", {"name": name})
        assert row is not None, "the secret was inserted above"
        return str(row[0])

    async def _list(self, query: str, parameters: dict[str, Any]) -> Files:
        def action(connection: sqlite3.Connection) -> Files:
            return [_file(row) for row in connection.execute(QUERIES[query], parameters)]

        return await self._connections.read(action)


def _file(row: rows.Row) -> File:
    named = dict(zip(File.__struct_fields__, row, strict=True))
    return File(**{**named, "metadata": rows.unpack(named["metadata"])})
