"""The table of conversations of the chat page."""

from __future__ import annotations

import asyncio
import sqlite3
from enum import StrEnum
from typing import Any

from appliance.domain.conversation import (
    MAX_COUNT,
    MAX_TOTAL_SIZE,
    Conversation,
    ConversationContent,
    ConversationSummary,
)
from appliance.store import expired, rows
from appliance.store.connections import Connections
from appliance.store.database import shrink
from appliance.store.expired import Applies
from appliance.store.queries import QUERIES
from appliance.store.records import FIRST, Position, Removal


class ConversationWrite(StrEnum):
    """The result of storing a conversation."""

    STORED = "stored"
    MISSING = "missing"  # the owner has no such conversation
    CHANGED = "changed"  # the stored conversation has another revision
    TOO_MANY = "too many"  # the owner has the maximum number of conversations
    TOO_LARGE = "too large"  # all conversations of the owner together would be too large


class ConversationTable:
    """Conversations, available as ``Store.conversations``. All methods need the owner of the conversation."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def list(self, owner: str) -> list[ConversationSummary]:
        """Return all conversations of an account, the last changed first."""

        def action(connection: sqlite3.Connection) -> list[ConversationSummary]:
            found = connection.execute(QUERIES["conversations"], {"owner": owner})
            return [_summary(row) for row in found]

        return await self._connections.read(action)

    async def get(self, id: str, owner: str) -> Conversation | None:
        """Return a conversation; None if the account has none with this id."""

        def action(connection: sqlite3.Connection) -> Conversation | None:
            row = connection.execute(QUERIES["conversation"], {"id": id, "owner": owner}).fetchone()
            return None if row is None else _conversation(row)

        return await self._connections.read(action)

    def add(self, conversation: Conversation) -> asyncio.Future[ConversationWrite]:
        """Store a new conversation, unless its owner has reached a limit."""
        columns = _columns(conversation)

        def action(connection: sqlite3.Connection) -> ConversationWrite:
            refused = _limit_reached(connection, columns)
            if refused is not None:
                return refused
            connection.execute(QUERIES["insert_conversation"], columns)
            return ConversationWrite.STORED

        return self._connections.write(action)

    def replace(self, conversation: Conversation) -> asyncio.Future[ConversationWrite]:
        """Store a changed conversation, whose ``revision`` is one more than that of the stored one.

        ``created_at`` is ignored.
        """
        columns = _columns(conversation)

        def action(connection: sqlite3.Connection) -> ConversationWrite:
            stored = connection.execute(QUERIES["conversation_revision"], columns).fetchone()
            if stored is None:
                return ConversationWrite.MISSING
            if stored[0] != conversation.revision - 1:
                return ConversationWrite.CHANGED
            refused = _limit_reached(connection, columns)
            if refused is not None:
                return refused
            connection.execute(QUERIES["update_conversation"], columns)
            return ConversationWrite.STORED

        return self._connections.write(action)

    def remove(self, id: str, owner: str) -> asyncio.Future[None]:
        """Delete a conversation, if the account has one with this id."""

        def action(connection: sqlite3.Connection) -> None:
            connection.execute(QUERIES["delete_conversation"], {"id": id, "owner": owner})
            shrink(connection)

        return self._connections.write(action)

    async def remove_unchanged(
        self, before: float, limit: int, *, applies: Applies, after: Position = FIRST
    ) -> Removal:
        """Delete up to ``limit`` conversations that were last changed before a Unix time.

        ``applies(model, owner)`` chooses the conversations, of those after the position ``after``.
        """
        found = await self._connections.read(
            lambda connection: expired.find(connection, "old_conversations", before, limit, applies, after)
        )
        if not found.rows:
            return Removal([], found.position)

        def remove(connection: sqlite3.Connection) -> list[str]:
            query, removed = QUERIES["delete_unchanged_conversation"], []
            for _, id, at in found.rows:
                if connection.execute(query, {"id": id, "updated_at": at}).rowcount:
                    removed.append(id)
            shrink(connection)
            return removed

        return Removal(await self._connections.write(remove), found.position)


def _limit_reached(connection: sqlite3.Connection, columns: dict[str, Any]) -> ConversationWrite | None:
    count, size = connection.execute(QUERIES["other_conversations"], columns).fetchone()
    if count >= MAX_COUNT:
        return ConversationWrite.TOO_MANY
    return ConversationWrite.TOO_LARGE if size + columns["size"] > MAX_TOTAL_SIZE else None


def _columns(conversation: Conversation) -> dict[str, Any]:
    body = rows.pack(conversation.content)
    named = {name: getattr(conversation, name) for name in ConversationSummary.__struct_fields__}
    return named | {"size": len(body), "body": body}


def _summary(row: rows.Row) -> ConversationSummary:
    return ConversationSummary(**dict(zip(ConversationSummary.__struct_fields__, row, strict=True)))


def _conversation(row: rows.Row) -> Conversation:
    *summary, body = row
    named = dict(zip(ConversationSummary.__struct_fields__, summary, strict=True))
    return Conversation(**named, content=rows.unpack(body, ConversationContent))
