"""The table of the audit log. Its records are never changed, and only deleted because of their age."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypedDict

from appliance.domain import audit
from appliance.domain.audit import AuditEvent, AuditRecord, Chain, ChainFault, ChainPosition, Verification
from appliance.store import audit_chain
from appliance.store.connections import Connections
from appliance.store.database import stream
from appliance.store.queries import QUERIES

_NEWEST = 2**62  # greater than the number of every record

#: Where records are sent.
Sink = Literal["file", "syslog"]


class AuditFilter(TypedDict, total=False):
    """Which records a list has. A filter that is missing or None matches all records."""

    who: str | None  # account, id of a token, or address
    action: str | None  # such as "token.create", or "token" for all actions on tokens
    object: str | None  # a part of the object
    since: str | None  # ISO 8601 in UTC, as in the records
    until: str | None


class AuditTable:
    """The audit log, available as ``Store.audit``."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def record(self, event: AuditEvent) -> asyncio.Future[None]:
        """Store the record of an event.

        A change of the database that needs its record in the same transaction uses ``Connections.audited``.
        """
        return self._connections.audited(lambda connection: None, event)

    async def newest(
        self, *, before: int | None = None, limit: int, filters: AuditFilter
    ) -> list[AuditRecord]:
        """Return records that match the filters, newest first, all with lower numbers than ``before``."""
        parameters = {
            **dict.fromkeys(AuditFilter.__annotations__),
            **filters,
            "number": _NEWEST if before is None else before,
            "limit": limit,
        }
        return await self._records("audit_before", parameters)

    async def after(self, number: int, limit: int) -> list[AuditRecord]:
        """Return up to ``limit`` records with higher numbers, oldest first."""
        return await self._records("audit_after", {"number": number, "limit": limit})

    async def verify(self) -> Verification:
        """Check all records, and that the newest one in the file beside the database is among them."""
        file = self._connections.head_file
        head = await asyncio.to_thread(audit_chain.read_head, file)

        def action(connection: sqlite3.Connection) -> Verification:
            chain = Chain(audit_chain.position(connection, "deleted"))
            for row in stream(connection, QUERIES["audit_rows"], {}):
                if chain.check(*row) is not None:
                    break
            fault = chain.fault or _compare(connection, chain.end, head, file)
            return Verification(chain.first, chain.end.number, chain.end.hash, fault)

        return await self._connections.read(action)

    async def shipped(self, sink: Sink) -> ChainPosition:
        """Return the last record that was sent to the file or to syslog."""
        return await self._connections.read(
            lambda connection: audit_chain.position(connection, f"shipped_{sink}")
        )

    def set_shipped(self, sink: Sink, record: AuditRecord) -> asyncio.Future[None]:
        columns = {"name": f"shipped_{sink}", "number": record.number, "hash": record.hash}
        return self._connections.change("put_audit_position", columns)

    def remove_before(self, at: float) -> asyncio.Future[int]:
        """Delete the records before a Unix time; return how many. The deletion is recorded itself."""
        since = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

        def action(connection: sqlite3.Connection) -> int:
            row = connection.execute(QUERIES["audit_first_since"], {"since": since}).fetchone()
            number = _NEWEST if row is None else row[0]
            last = connection.execute(QUERIES["audit_last_before"], {"number": number}).fetchone()
            if last is None:
                return 0
            first = audit_chain.position(connection, "deleted").number + 1
            event = AuditEvent(action="audit.expire", object=f"{first}-{last[0]}", owner="appliance")
            audit_chain.append(connection, event)
            connection.execute(
                QUERIES["put_audit_position"], {"name": "deleted", "number": last[0], "hash": last[1]}
            )
            return connection.execute(QUERIES["delete_audit"], {"number": last[0]}).rowcount

        return self._connections.with_head(self._connections.write(action))

    async def _records(self, query: str, parameters: dict[str, object]) -> list[AuditRecord]:
        return await self._connections.read(
            lambda connection: [audit.parse(*row) for row in connection.execute(QUERIES[query], parameters)]
        )


def _compare(
    connection: sqlite3.Connection, end: ChainPosition, head: ChainPosition | None, file: Path
) -> ChainFault | None:
    if head is None:
        return (
            ChainFault(end.number, f"cannot be compared: the file {file} is missing") if end.number else None
        )
    if head.number > end.number:
        return ChainFault(
            end.number + 1, f"is missing: according to {file} there were records up to {head.number}"
        )
    if not audit_chain.contains(connection, head):
        return ChainFault(head.number, f"was replaced: {file} has another hash")
    return None
