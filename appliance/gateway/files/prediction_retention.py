"""Deletes inputs, outputs and logs of old predictions, whose records stay, and old conversations."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from appliance.domain.audit import AuditEvent
from appliance.domain.errors import StoreError
from appliance.domain.retention import RetentionRules
from appliance.gateway.files.file_store import FileStore
from appliance.store import FIRST, Position, Removal, Store

_log = logging.getLogger(__name__)

BATCH: Final = 200  # predictions in one transaction, so that other writes wait only briefly
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds between deletions
#: Seconds after the end of a prediction until its end is certainly stored, unless the disk is full.
_STORED: Final = 60.0
#: Seconds between two searches in all predictions. They find what was imported or delivered by webhook since.
_AGAIN: Final = 3600.0
_OFTEN: Final = 5.0  # seconds between deletions if output files have a limit
#: Seconds that everything is kept at least: time to send the response, and for clients to fetch output files.
_KEPT: Final = 5.0
#: Free pages of the database returned to the disk in a minute, beside those after each deletion: 40 MB.
_PAGES: Final = 10_000


class _Remove(Protocol):
    """``Store.remove_data`` or ``ConversationTable.remove_unchanged``."""

    def __call__(
        self, before: float, limit: int, *, applies: Callable[[str, str], bool], after: Position
    ) -> Awaitable[Removal]: ...


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
        #: By time: predictions, or conversations, before the position were looked at.
        self._predictions: dict[float, Position] = {}
        self._conversations: dict[float, Position] = {}
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
        self._look_at_all()
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

    def _look_at_all(self) -> None:
        self._looked_at_all = time.monotonic()
        self._predictions.clear()
        self._conversations.clear()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            if time.monotonic() - self._looked_at_all > _AGAIN:
                self._look_at_all()
            try:
                removed, conversations = await self._remove()
            except StoreError as error:
                _log.error("data of old predictions could not be deleted, retrying: %s", error)
                removed, conversations = 0, 0
            if removed:
                _log.info("deleted the data of %d old predictions", removed)
            if conversations:
                _log.info("deleted %d old conversations", conversations)
            self._remains = self._remains or bool(removed or conversations)
            if removed < BATCH and conversations < BATCH:
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
            self._remains = not await self._store.compact(_PAGES)
        except StoreError as error:
            _log.error("deleted data could not be removed from the file of the database, retrying: %s", error)
        self._compacted = time.monotonic()

    async def _remove(self) -> tuple[int, int]:
        """Delete the data of up to ``BATCH`` predictions, and as many conversations; return how many."""
        rules = self._rules
        kept = functools.cache(rules.seconds_for)
        conversations = self._store.conversations.remove_unchanged
        data = self._store.remove_data
        count = conversation_count = 0
        for seconds in rules.times:
            removed = await _remove_older(data, self._predictions, seconds, BATCH - count, kept)
            await self._files.remove_outputs(removed)
            count += len(removed)
            limit = BATCH - conversation_count
            removed = await _remove_older(conversations, self._conversations, seconds, limit, kept)
            conversation_count += len(removed)
        if self._outputs is not None:
            before = time.time() - _KEPT
            removed = await self._store.remove_files_over(self._outputs, BATCH, before=before)
            await self._files.remove_outputs(removed)
            count += len(removed)
        return count, conversation_count


async def _remove_older(
    remove: _Remove,
    positions: dict[float, Position],
    seconds: float,
    limit: int,
    kept: Callable[[str, str], float | None],
) -> list[str]:
    """Delete up to ``limit`` predictions or conversations that are kept for at most ``seconds``.

    ``kept(model, owner)`` is the time for which those of a model and an owner are kept. ``positions`` has the
    place where the last call for ``seconds`` stopped, and gets that of this call.
    """

    @functools.cache
    def applies(model: str, owner: str) -> bool:
        time_kept = kept(model, owner)
        return time_kept is not None and time_kept <= seconds

    before = time.time() - max(seconds, _KEPT)
    removed: list[str] = []
    position: Position | None = positions.get(seconds, FIRST)
    while position is not None and len(removed) < limit:
        found = await remove(before, limit - len(removed), applies=applies, after=position)
        removed += found.ids
        position = found.position
        # The end of a prediction is stored a little after `completed_at`.
        latest = Position(min(before, time.time() - _STORED), 0)
        positions[seconds] = latest if position is None else min(position, latest)
    return removed
