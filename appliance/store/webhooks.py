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
    """Last webhooks of predictions, until they are delivered, and the keys that sign webhooks."""

    async def due_deliveries(self, now: float, each: int) -> list[Delivery]:
        """Return deliveries due at ``now``, at most ``each`` for a receiver, longest due first."""
        query, parameters = QUERIES["due_deliveries"], {"now": now, "each": each}
        return await self.read(
            lambda connection: [rows.delivery(row) for row in connection.execute(query, parameters)]
        )

    async def next_delivery(self) -> float | None:
        """Return the Unix time at which the next delivery is due; None if there is none."""
        row = self.row("next_delivery", {})
        return None if row is None else row[0]

    def postpone_delivery(self, id: str, attempts: int, due_at: float, problem: str) -> asyncio.Future[None]:
        """Store that a delivery failed ``attempts`` times, last with ``problem``; next due at ``due_at``."""
        failed: Parameters = {"id": id, "attempts": attempts, "due_at": due_at, "problem": problem}
        return self.change("postpone_delivery", failed)

    def end_delivery(self, id: str, problem: str | None = None) -> asyncio.Future[None]:
        """Store that a delivery succeeded, or was given up because of ``problem``."""
        return self.change("end_delivery", {"id": id, "problem": problem, "now": time.time()})

    async def deliveries(self, prediction: str) -> list[Delivery]:
        """Return the finished and pending deliveries of a prediction."""
        query, parameters = QUERIES["deliveries"], {"prediction": prediction}
        return await self.read(
            lambda connection: [rows.delivery(row) for row in connection.execute(query, parameters)]
        )

    async def webhook_keys(self, owner: str, now: float) -> list[str]:
        """Return the valid keys that sign the owner's webhooks, newest first."""
        query, parameters = QUERIES["webhook_keys"], {"owner": owner, "now": now}
        return await self.read(lambda connection: [row[0] for row in connection.execute(query, parameters)])

    def add_webhook_key(self, owner: str, key: str, now: float, keep: float) -> asyncio.Future[None]:
        """Add a key for the owner's webhooks; the owner's other keys expire ``keep`` seconds later."""
        added: Parameters = {"owner": owner, "key": key, "now": now, "expires_at": now + keep}

        def action(connection: sqlite3.Connection) -> None:
            for query in ("delete_webhook_keys", "expire_webhook_keys", "insert_webhook_key"):
                connection.execute(QUERIES[query], added)

        return self.write(action)

    def add_first_webhook_key(self, owner: str, key: str, now: float) -> asyncio.Future[None]:
        """Add a key for the owner's webhooks, unless the owner has a valid key."""
        return self.change("insert_first_webhook_key", {"owner": owner, "key": key, "now": now})

    def claim_webhook_keys(self, owner: str) -> asyncio.Future[None]:
        """Give ``owner`` the keys of earlier versions, which had one key for all owners."""
        return self.change("claim_webhook_keys", {"owner": owner})
