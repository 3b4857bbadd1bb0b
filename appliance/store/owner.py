"""A lock file, so that only one appliance uses a database."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Final

from appliance.domain.errors import StoreError

_POLL: Final = 0.05  # seconds between attempts to take a lock that another process holds


def lock_file(database: Path) -> Path:
    return database.with_name(f"{database.name}.lock")


class OwnerLock:
    """A locked file next to the database. The kernel releases the lock when the process dies."""

    def __init__(self, database: Path) -> None:
        self._path = lock_file(database)
        self._descriptor: int | None = None

    async def take(self, patience: float) -> None:
        """Take the lock, trying for ``patience`` seconds; do nothing if this object holds the lock already.

        Raises:
            StoreError: another process holds the lock, or the lock file cannot be written.
        """
        if self._descriptor is not None:
            return
        try:
            # O_CLOEXEC: a child process must not hold the lock after the death of its gateway.
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise StoreError(f"{self._path}: cannot open the lock file: {exc.strerror}") from exc
        try:
            await self._lock(descriptor, patience)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:  # also when the waiting task is cancelled
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    async def _lock(self, descriptor: int, patience: float) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as exc:
                if loop.time() >= give_up:
                    holder = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
                    raise StoreError(
                        f"{self._path}: the data folder is in use by another appliance (pid {holder}):"
                        " stop that appliance, or use another data folder"
                    ) from exc
            await asyncio.sleep(_POLL)

    def release(self) -> None:
        """Release the lock, if held. The file is not removed, because another process may have locked it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
