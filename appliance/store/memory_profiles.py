"""The table of measured memory of models, kept between starts of the appliance."""

from __future__ import annotations

import asyncio
import sqlite3

import msgspec

from appliance.store.connections import Connections
from appliance.store.queries import QUERIES


class MemoryProfileRow(msgspec.Struct, frozen=True, kw_only=True):
    """Measured memory of one model version, with one set of options, on one kind of device."""

    loaded: str  # hex digest of the version, the model kind and the options
    device: str  # "cpu" or "cuda"
    model: str  # for logs and reports
    peak: int  # bytes on each device
    main: int  # bytes of main memory
    measured_at: float  # Unix seconds


class MemoryProfileTable:
    """Measured memory of models, available as ``Store.memory_profiles``."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def put(self, row: MemoryProfileRow) -> asyncio.Future[None]:
        return self._connections.change("put_footprint", msgspec.structs.asdict(row))

    async def all(self) -> list[MemoryProfileRow]:
        def action(connection: sqlite3.Connection) -> list[MemoryProfileRow]:
            found = connection.execute(QUERIES["all_footprints"])
            names = MemoryProfileRow.__struct_fields__
            return [MemoryProfileRow(**dict(zip(names, row, strict=True))) for row in found]

        return await self._connections.read(action)
