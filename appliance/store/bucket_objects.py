"""The table of objects in the bucket of ``files.s3``.

An object has a row before its upload begins, and until it is deleted. When the row of a file or of a trained
version is deleted, a trigger marks its objects as to be deleted, in the same transaction. So no object is
forgotten, whenever the gateway ends.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable
from typing import Final, Literal

from appliance.domain.model import Adapter
from appliance.store import rows
from appliance.store.connections import Connections
from appliance.store.queries import QUERIES

State = Literal["uploading", "stored", "deleting"]

#: Name under which ``FileTable.secret`` stores the id that is also in the bucket.
BUCKET_ID: Final = "bucket-id"
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
        return await self.state(path)

    def begin_version(self, version: str, paths: Iterable[str]) -> asyncio.Future[None]:
        """Record that the upload of all files of a trained version begins.

        The rows of all files are written first, so that a partly uploaded version is recognized as
        incomplete.
        """

        def action(connection: sqlite3.Connection) -> None:
            begun = [{"path": path, "id": version} for path in paths]
            connection.executemany(QUERIES["begin_object"], begun)

        return self._connections.write(action)

    async def state(self, path: str) -> State | None:
        row = await self._connections.row("object_state", {"path": path})
        return None if row is None else row[0]

    def complete(self, path: str) -> asyncio.Future[bool]:
        """Record that an upload is complete; return False if the object is to be deleted now."""

        def action(connection: sqlite3.Connection) -> bool:
            return connection.execute(QUERIES["complete_object"], {"path": path}).rowcount == 1

        return self._connections.write(action)

    async def to_delete(self, after: str, limit: int) -> list[str]:
        """Return up to ``limit`` paths of objects that are to be deleted, in order, after ``after``."""

        def action(connection: sqlite3.Connection) -> list[str]:
            parameters = {"after": after, "limit": limit}
            return [path for (path,) in connection.execute(QUERIES["objects_to_delete"], parameters)]

        return await self._connections.read(action)

    def forget(self, path: str) -> asyncio.Future[None]:
        """Remove the row of an object that was deleted."""
        return self._connections.change("forget_object", {"path": path})

    async def of_version(self, version: str) -> dict[str, State]:
        """Return the objects of a trained version with their states."""
        first = f"{VERSIONS}{version}/"
        parameters = {"first": first, "last": f"{first[:-1]}0"}
        return await self._connections.read(
            lambda connection: dict(connection.execute(QUERIES["objects_below"], parameters).fetchall())
        )

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
