"""Deletes inputs, outputs and logs of old predictions, whose records stay, and old conversations."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final

from appliance.domain.audit import Act
from appliance.domain.errors import StoreError
from appliance.gateway.files.file_store import FileStore
from appliance.store import Store

_log = logging.getLogger(__name__)

BATCH: Final = 200  # predictions in one transaction, so that other writes wait only briefly
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds between deletions
_OFTEN: Final = 5.0  # seconds between deletions if output files have a limit


class Retention:
    """Deletes old data of predictions and old conversations; used on the gateway's event loop only."""

    def __init__(self, store: Store, files: FileStore, keep: float | None, outputs: int | None) -> None:
        """Keep data for ``keep`` seconds after a prediction ended; None keeps data for ever.

        Conversations are kept for ``keep`` seconds after their last change.
        ``outputs`` is the limit of all output files together, in bytes; None is no limit.
        """
        self._store = store
        self._files = files
        self._keep = keep
        self._outputs = outputs
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def change(self, keep: float | None, outputs: int | None) -> None:
        """Replace both limits, which are those of the constructor."""
        self._keep, self._outputs = keep, outputs
        self._changed.set()

    async def remove(self, prediction: str, act: Act | None = None) -> None:
        """Delete the data of one prediction that has ended, and its output files; record ``act``."""
        removed = await self._store.remove_data_of(prediction, act)
        await self._files.remove_outputs(removed)

    async def close(self) -> None:
        """Stop; a deletion in progress is still committed."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                removed = await self._remove()
                await self._files.remove_outputs(removed)
                conversations = await self._remove_conversations()
            except StoreError as error:
                _log.error("data of old predictions could not be deleted, retrying: %s", error)
                removed, conversations = [], 0
            if removed:
                _log.info("deleted the data of %d old predictions", len(removed))
            if conversations:
                _log.info("deleted %d old conversations", conversations)
            if len(removed) < BATCH and conversations < BATCH:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._changed.wait()

    def _pause(self) -> float | None:
        """Return the seconds until the next deletion; None if there are no limits."""
        if self._keep is None and self._outputs is None:
            return None
        pause = _LONGEST if self._keep is None else min(max(self._keep / 10, _SHORTEST), _LONGEST)
        return pause if self._outputs is None else min(pause, _OFTEN)

    async def _remove_conversations(self) -> int:
        if self._keep is None:
            return 0
        return await self._store.conversations.remove_unchanged(time.time() - self._keep, BATCH)

    async def _remove(self) -> list[str]:
        removed = []
        if self._keep is not None:
            removed += await self._store.remove_data(time.time() - self._keep, BATCH)
        if self._outputs is not None:
            removed += await self._store.remove_files_over(self._outputs, BATCH)
        return removed
