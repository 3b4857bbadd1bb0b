"""Deletes inputs, outputs and logs of old predictions, whose records stay, and old conversations."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from typing import Final

from appliance.domain.audit import AuditEvent
from appliance.domain.errors import StoreError
from appliance.domain.retention import RetentionRules
from appliance.gateway.files.file_store import FileStore
from appliance.store import FIRST, Position, Store

_log = logging.getLogger(__name__)

BATCH: Final = 200  # predictions in one transaction, so that other writes wait only briefly
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds between deletions
#: Seconds after the end of a prediction until its end is certainly stored, unless the disk is full.
_STORED: Final = 60.0
#: Seconds between two searches in all predictions. They find what was imported or delivered by webhook since.
_AGAIN: Final = 3600.0
_OFTEN: Final = 5.0  # seconds between deletions if output files have a limit


class Retention:
    """Deletes old data of predictions and old conversations; used on the gateway's event loop only."""

    def __init__(
        self, store: Store, files: FileStore, rules: RetentionRules, outputs: int | None = None
    ) -> None:
        """Keep data as long as ``rules`` say.

        ``outputs`` is the limit of all output files together, in bytes; None is no limit.
        """
        self._store = store
        self._files = files
        self._rules = rules
        self._outputs = outputs
        self._positions: dict[float, Position] = {}  # by time: predictions before it were looked at
        self._looked_at_all = time.monotonic()
        self._compacted = 0.0
        self._remains = False  # whether deleted data may be in free pages or in the WAL file
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    def change(self, rules: RetentionRules, outputs: int | None) -> None:
        """Replace the rules and the limit of the constructor."""
        self._rules, self._outputs = rules, outputs
        self._positions.clear()
        self._changed.set()

    async def remove(self, prediction: str, event: AuditEvent | None = None) -> None:
        """Delete the data of one prediction that has ended, and its output files; record ``event``."""
        removed = await self._store.remove_data_of(prediction, event)
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
            self._remains = self._remains or bool(removed or conversations)
            if len(removed) < BATCH and conversations < BATCH:
                await self._compact()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._changed.wait()

    def _pause(self) -> float | None:
        """Return the seconds until the next deletion; None if there are no limits."""
        times = self._rules.times
        if not times and self._outputs is None:
            return None
        pause = min(max(times[0] / 10, _SHORTEST), _LONGEST) if times else _LONGEST
        return pause if self._outputs is None else min(pause, _OFTEN)

    async def _compact(self) -> None:
        """Remove the remains of deleted data from the database file and its WAL file, once a minute."""
        if not self._remains or time.monotonic() - self._compacted < _LONGEST:
            return
        try:
            self._remains = not await self._store.compact()
        except StoreError as error:
            _log.error("deleted data could not be removed from the file of the database, retrying: %s", error)
        self._compacted = time.monotonic()

    async def _remove_conversations(self) -> int:
        times, rules, now = self._rules.times, self._rules, time.time()
        if not times:
            return 0

        def expired(model: str, owner: str, updated_at: float) -> bool:
            kept = rules.of(model, owner)
            return kept is not None and updated_at < now - kept

        return await self._store.conversations.remove_unchanged(now - times[0], BATCH, expired)

    async def _remove(self) -> list[str]:
        if time.monotonic() - self._looked_at_all > _AGAIN:
            self._looked_at_all = time.monotonic()
            self._positions.clear()
        removed: list[str] = []
        for seconds in self._rules.times:
            removed += await self._remove_older(seconds, BATCH - len(removed))
        if self._outputs is not None:
            removed += await self._store.remove_files_over(self._outputs, BATCH)
        return removed

    async def _remove_older(self, seconds: float, limit: int) -> list[str]:
        """Delete the data of up to ``limit`` predictions that is kept for at most ``seconds``."""
        rules = self._rules

        @functools.cache
        def applies(model: str, owner: str) -> bool:
            kept = rules.of(model, owner)
            return kept is not None and kept <= seconds

        before = time.time() - seconds
        removed: list[str] = []
        position: Position | None = self._positions.get(seconds, FIRST)
        while position is not None and len(removed) < limit:
            found = await self._store.remove_data(
                before, limit - len(removed), applies=applies, after=position
            )
            removed += found.ids
            position = found.position
            # The end of a prediction is stored a little after `completed_at`.
            latest = Position(min(before, time.time() - _STORED), 0)
            self._positions[seconds] = latest if position is None else min(position, latest)
        return removed
