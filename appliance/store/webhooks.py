"""The tables of webhook deliveries and of webhook keys."""

from __future__ import annotations

import asyncio
import sqlite3
import time

from appliance.store import rows
from appliance.store.connections import Connections, Parameters
from appliance.store.queries import QUERIES
from appliance.store.records import Delivery


class WebhookTable(Connections):
    """Methods of ``Store`` for webhook deliveries and the keys that sign webhooks."""

    async def due_deliveries(self, now: float, each: int) -> list[Delivery]:
        """Return deliveries due at ``now``, longest due first, at most ``each`` for each receiver."""
        query, parameters = QUERIES["due_deliveries"], {"now": now, "each": each}
        return await self.read(
            lambda connection: [rows.delivery(row) for row in connection.execute(query, parameters)]
        )

    async def next_delivery(self) -> float | None:
        """Return the Unix time at which the next delivery is due; None if no delivery is pending."""
        row = await self.row("next_delivery", {})
        return None if row is None else row[0]

    def postpone_delivery(self, id: str, attempts: int, due_at: float, problem: str) -> asyncio.Future[None]:
        """Record that ``attempts`` attempts of a delivery have failed; the next is due at ``due_at``."""
        failed: Parameters = {"id": id, "attempts": attempts, "due_at": due_at, "problem": problem}
        return self.change("postpone_delivery", failed)

    def end_delivery(self, id: str, problem: str | None = None) -> asyncio.Future[None]:
        """Record that a delivery has succeeded, or that it was given up because of ``problem``."""
        return self.change("end_delivery", {"id": id, "problem": problem, "now": time.time()})

    async def deliveries(self, prediction: str) -> list[Delivery]:
        query, parameters = QUERIES["deliveries"], {"prediction": prediction}
        return await self.read(
            lambda connection: [rows.delivery(row) for row in connection.execute(query, parameters)]
        )

    async def webhook_keys(self, owner: str, now: float) -> list[str]:
        """Return the keys of the owner's webhooks that are valid at ``now``, newest first."""
        query, parameters = QUERIES["webhook_keys"], {"owner": owner, "now": now}
        return await self.read(lambda connection: [row[0] for row in connection.execute(query, parameters)])

    def add_webhook_key(self, owner: str, key: str, now: float, keep: float) -> asyncio.Future[None]:
        """Add a key for the owner's webhooks; the owner's other keys expire after ``keep`` seconds."""
        added: Parameters = {"owner": owner, "key": key, "now": now, "expires_at": now + keep}

        def action(connection: sqlite3.Connection) -> None:
            for query in ("delete_webhook_keys", "expire_webhook_keys", "insert_webhook_key"):
                connection.execute(QUERIES[query], added)

        return self.write(action)

    def add_first_webhook_key(self, owner: str, key: str, now: float) -> asyncio.Future[None]:
        """Add a key for the owner's webhooks, unless the owner has a valid key."""
        return self.change("insert_first_webhook_key", {"owner": owner, "key": key, "now": now})

    def claim_webhook_keys(self, owner: str) -> asyncio.Future[None]:
        """Assign to ``owner`` the keys that an earlier appliance version stored without an owner."""
        return self.change("claim_webhook_keys", {"owner": owner})
