"""A store on a real file."""

from __future__ import annotations

from pathlib import Path

from appliance.store import SQLiteStore


async def opened(path: Path) -> SQLiteStore:
    """Open, and not waiting for the disk."""
    store = SQLiteStore(path, durability="normal")
    await store.open()
    return store
