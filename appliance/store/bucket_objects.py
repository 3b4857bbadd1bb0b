"""The table of objects in the bucket of ``files.s3``.

An object has a row before its upload begins, and until it is deleted. When the row of a file or of a trained
version is deleted, a trigger marks its objects as to be deleted, in the same transaction. So no object is
forgotten, whenever the gateway ends.
"""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any, Final, Literal

from appliance.domain.model import Adapter
from appliance.store import rows
from appliance.store.connections import Connections
from appliance.store.queries import QUERIES

State = Literal["uploading", "stored", "deleting"]

VERSIONS: Final = "versions/"  # prefix of the paths of trained versions


class BucketTable:
    """Rows of objects in the bucket, available as ``FileTable.objects``.

    ``path`` is always relative to the folder of files, such as ``uploads/abc``.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def begin(self, path: str, id: str) -> State | None:
        """Record that an upload begins; return the state of the object.

        ``id`` is the id of the file or of the trained version. None means that it was deleted. The upload
        must begin only if the state is ``uploading``.
        """
        await self._connections.change("begin_object", {"path": path, "id": id})
        return self.state(path)

    def state(self, path: str) -> State | None:
        row = self._connections.row("object_state", {"path": path})
        return None if row is None else row[0]

    def complete(self, path: str) -> asyncio.Future[bool]:
        """Record that an upload is complete; return False if the object is to be deleted now."""

        def action(connection: sqlite3.Connection) -> bool:
            return connection.execute(QUERIES["complete_object"], {"path": path}).rowcount == 1

        return self._connections.write(action)

    async def to_delete(self, limit: int) -> list[str]:
        return await self._paths("objects_to_delete", {"limit": limit})

    def forget(self, path: str) -> asyncio.Future[None]:
        """Remove the row of an object that was deleted."""
        return self._connections.change("forget_object", {"path": path})

    async def of_version(self, version: str) -> list[str]:
        """Return the complete objects of a trained version."""
        first = f"{VERSIONS}{version}/"
        return await self._paths("objects_below", {"first": first, "last": f"{first[:-1]}0"})

    async def counts(self) -> dict[State, int]:
        """Return the number of objects by state."""
        return await self._connections.read(
            lambda connection: dict(connection.execute(QUERIES["count_objects"]).fetchall())
        )

    async def files(self) -> dict[str, str]:
        """Return the ids of all files by their paths."""
        return await self._connections.read(
            lambda connection: dict(connection.execute(QUERIES["file_ids"]).fetchall())
        )

    async def versions(self) -> list[str]:
        """Return the ids of all trained versions."""

        def action(connection: sqlite3.Connection) -> list[str]:
            found = connection.execute(QUERIES["all_adapters"])
            return [rows.unpack(body, Adapter).version for (body,) in found]

        return await self._connections.read(action)

    async def _paths(self, query: str, parameters: dict[str, Any]) -> list[str]:
        return await self._connections.read(
            lambda connection: [path for (path,) in connection.execute(QUERIES[query], parameters)]
        )
