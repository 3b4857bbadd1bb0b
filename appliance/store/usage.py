"""The table of usage: totals that the end of a prediction adds to, and that outlive the prediction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Any

from appliance.domain.usage import KEYS, Usage
from appliance.store.connections import Connections
from appliance.store.queries import QUERIES


class UsageTable:
    """``Store.usage``."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def rows(
        self, by: Collection[str], *, first: str = "", last: str = "9999-12-31", owner: str | None = None
    ) -> list[Usage]:
        """Return the usage from the ``first`` to the ``last`` day, both included, grouped by ``by``.

        ``by`` names some of ``usage.KEYS``. Rows are always grouped by hardware too, because prices depend on
        it. With ``owner``, only the usage of that account.
        """
        parameters: dict[str, Any] = {f"by_{key}": key in by for key in KEYS if key != "hardware"}
        parameters |= {"first": first, "last": last, "owner": owner}

        def action(connection: sqlite3.Connection) -> list[Usage]:
            found = connection.execute(QUERIES["usage"], parameters)
            return [Usage(**dict(zip(Usage.__struct_fields__, row, strict=True))) for row in found]

        return await self._connections.read(action)
