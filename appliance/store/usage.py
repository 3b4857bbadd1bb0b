"""The table of usage totals. Finished predictions are added to it, and their deletion does not change it."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Any

from appliance.domain.usage import KEYS, Usage
from appliance.store.queries import QUERIES
from appliance.store.unindexed import Unindexed


class UsageTable:
    """Usage totals, available as ``Store.usage``."""

    def __init__(self, connections: Unindexed) -> None:
        self._connections = connections

    async def rows(
        self, by: Collection[str], *, first: str = "", last: str = "9999-12-31", owner: str | None = None
    ) -> list[Usage]:
        """Return the usage of ``owner``, or of all accounts, grouped by some of ``domain.usage.KEYS``.

        ``first`` and ``last`` are days such as "2026-01-31", both included. Rows are always grouped by
        hardware too, because prices depend on the hardware.
        """
        parameters: dict[str, Any] = {f"by_{key}": key in by for key in KEYS if key != "hardware"}
        parameters |= {"first": first, "last": last, "owner": owner}

        def action(connection: sqlite3.Connection) -> list[Usage]:
            found = connection.execute(QUERIES["usage"], parameters)
            return [Usage(**dict(zip(Usage.__struct_fields__, row, strict=True))) for row in found]

        await self._connections.indexed()
        return await self._connections.read(action)
