"""Usage: what predictions took, added up where their end is stored, and kept when they are gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Any

from appliance.domain.usage import KEYS, Usage
from appliance.store.connections import Connections
from appliance.store.queries import QUERIES


class UsageTable:
    """Part of a ``Store``."""

    def __init__(self, connections: Connections) -> None:
        """``connections`` is the store that this is part of."""
        self._connections = connections

    async def rows(
        self,
        by: Collection[str],
        *,
        first: str = "",
        last: str = "9999-12-31",
        owner: str | None = None,
    ) -> list[Usage]:
        """What was used from ``first`` to ``last`` day, both included, told apart by some of ``usage.KEYS``.

        Hardware is always told apart, because that is what prices go by. With ``owner``, what that one used.
        """
        asked: dict[str, Any] = {f"by_{key}": key in by for key in KEYS if key != "hardware"}
        asked |= {"first": first, "last": last, "owner": owner}

        def action(connection: sqlite3.Connection) -> list[Usage]:
            found = connection.execute(QUERIES["usage"], asked)
            return [Usage(**dict(zip(Usage.__struct_fields__, row, strict=True))) for row in found]

        return await self._connections.read(action)
