"""What models were found to take of the machine, kept between starts."""

from __future__ import annotations

import asyncio
import sqlite3

import msgspec

from appliance.store import rows
from appliance.store.connections import Connections
from appliance.store.queries import QUERIES


class FootprintRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one version takes when it is loaded with certain options on one kind of device."""

    loaded: str  # hex digits: of version, kind and options
    device: str  # "cpu" or "cuda"
    model: str  # for people
    peak: int  # bytes on each of its devices
    main: int  # bytes of main memory
    measured_at: float  # Unix seconds


class FootprintTable:
    """Part of a ``Store``; writes keep its promises."""

    def __init__(self, connections: Connections) -> None:
        """``connections`` is the store that this is part of."""
        self._connections = connections

    def put(self, row: FootprintRow) -> asyncio.Future[None]:
        """Keep it, in place of what was known of the same."""
        return self._connections.change("put_footprint", msgspec.structs.asdict(row))

    async def all(self) -> list[FootprintRow]:
        """Everything that is known, in no order."""

        def action(connection: sqlite3.Connection) -> list[FootprintRow]:
            return [_footprint(row) for row in connection.execute(QUERIES["all_footprints"])]

        return await self._connections.read(action)


def _footprint(row: rows.Row) -> FootprintRow:
    return FootprintRow(**dict(zip(FootprintRow.__struct_fields__, row, strict=True)))
