"""The database of the appliance, in SQLite or PostgreSQL; the only package with SQL."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from appliance.store.audit import AuditFilter, AuditTable
from appliance.store.conversations import ConversationTable, ConversationWrite
from appliance.store.database import Durability, is_temporary
from appliance.store.deletions import Deletions
from appliance.store.erasures import ErasureTable
from appliance.store.files import FileTable
from appliance.store.lease import Lease
from appliance.store.memory_profiles import MemoryProfileRow, MemoryProfileTable
from appliance.store.predictions import PredictionTable
from appliance.store.records import (
    FIRST,
    RETRY_STORE,
    Cursor,
    Delivery,
    Filter,
    Found,
    Position,
    Progress,
    Receiver,
    Removal,
    VersionRow,
)
from appliance.store.registry import Registry
from appliance.store.tokens import TokenTable
from appliance.store.usage import UsageTable
from appliance.store.users import UserTable
from appliance.store.versions import VersionTable
from appliance.store.webhooks import WebhookTable

__all__ = [
    "FIRST",
    "RETRY_STORE",
    "AuditFilter",
    "ConversationWrite",
    "Cursor",
    "Delivery",
    "Filter",
    "Found",
    "Lease",
    "MemoryProfileRow",
    "Position",
    "Progress",
    "Receiver",
    "Removal",
    "Store",
    "VersionRow",
    "is_temporary",
]


class Store(PredictionTable, VersionTable, TokenTable, WebhookTable, Deletions):
    """Reads and writes the SQLite file ``path``; creates its folder if needed.

    With ``url``, the database is on a PostgreSQL server, and only files beside ``path`` are used.

    A committed write survives the death of the process. With ``durability`` "full" every commit waits for the
    disk, so the write also survives a power cut. With "normal", a power cut may lose the last writes, but it
    does not damage the database.
    """

    def __init__(self, path: Path, *, url: str | None = None, durability: Durability = "full") -> None:
        super().__init__(path, url=url, durability=durability)
        self.audit = AuditTable(self)
        self.conversations = ConversationTable(self)
        self.erasures = ErasureTable(self)
        self.files = FileTable(self)
        self.memory_profiles = MemoryProfileTable(self)
        self.registry = Registry(self)
        self.usage = UsageTable(self)
        self.users = UserTable(self)

    def check(self) -> asyncio.Future[None]:
        """Commit a small write; the future fails with ``StoreError`` if the database cannot be written."""
        return self.change("write_something", {"at": time.time()})
