"""The table of API tokens."""

from __future__ import annotations

import asyncio
import sqlite3
import time

from appliance.domain.audit import AuditEvent
from appliance.domain.errors import StoreError
from appliance.domain.token import Token
from appliance.store import audit_chain, rows
from appliance.store.connections import Connections
from appliance.store.queries import QUERIES


class TokenTable(Connections):
    """Methods of ``Store`` for API tokens. Only digests of the secrets are stored."""

    def add_token(self, token: Token, event: AuditEvent | None = None) -> asyncio.Future[None]:
        def action(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(QUERIES["insert_token"], rows.token_columns(token))
            except sqlite3.IntegrityError as exc:
                raise StoreError(f"token {token.id} exists already ({exc})") from exc

        return self.audited(action, event)

    async def find_token(self, digest: str) -> Token | None:
        """Return the token whose secret has this digest; None if there is none or the token is revoked."""
        row = await self.row("token_by_digest", {"digest": digest})
        return None if row is None else rows.token(row)

    async def token(self, id: str) -> Token | None:
        """Return the token with this id, revoked or not."""
        row = await self.row("token_by_id", {"id": id})
        return None if row is None else rows.token(row)

    def record_token_use(self, id: str, at: float, address: str) -> asyncio.Future[None]:
        """Store when and from which IP address a token was used last."""

        def action(connection: sqlite3.Connection) -> None:
            use = {"id": id, "last_used_at": at, "last_used_from": address}
            connection.execute(QUERIES["record_token_use"], use)

        return self.write(action)

    async def list_tokens(self) -> list[Token]:
        return await self.read(
            lambda connection: [rows.token(row) for row in connection.execute(QUERIES["all_tokens"])]
        )

    def revoke_token(self, id: str, event: AuditEvent | None = None) -> asyncio.Future[Token | None]:
        """Revoke a token and return it; None if there is no such token. A revoked token is not changed.

        ``event`` is recorded in the same transaction, if there is such a token.
        """
        now = time.time()

        def action(connection: sqlite3.Connection) -> Token | None:
            connection.execute(QUERIES["revoke_token"], {"id": id, "revoked_at": now})
            row = connection.execute(QUERIES["token_by_id"], {"id": id}).fetchone()
            if row is not None and event is not None:
                audit_chain.append(connection, event)
            return None if row is None else rows.token(row)

        return self.with_head(self.write(action))
