"""A store on a real file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from appliance.store import Store

_empty: list[bytes] = []  # an empty database, once this process has made one


async def created(path: Path) -> Store:
    """Open a store that does not wait for the disk."""
    store = Store(path, durability="normal")
    await store.open()
    return store


async def opened(path: Path) -> Store:
    """Open a store; a new database is the copy of one that this process has made before.

    Each step of the schema is a transaction of its own, and waits for the disk.
    """
    if not _empty:
        with tempfile.TemporaryDirectory() as folder:
            await (await created(Path(folder) / "appliance.db")).close()
            _empty.append((Path(folder) / "appliance.db").read_bytes())
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(_empty[0])
    return await created(path)
