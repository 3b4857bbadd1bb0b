"""Stores the events of running predictions in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Final

from appliance.domain.errors import StatusConflict, UnstorableValue
from appliance.gateway.engine.active import ActivePrediction, Events
from appliance.store import Store

_log = logging.getLogger(__name__)

SAVE_INTERVAL: Final = 0.25  # seconds between writes of a running prediction's events
#: The events of so many predictions are written together. More would delay the tokens of all streams, because
#: the thread that writes keeps the event loop from running.
BATCH: Final = 8
_PAUSE: Final = 0.01  # seconds between two batches


class Saver:
    """Writes the ``unsaved`` events of active predictions."""

    def __init__(self, store: Store, active: Mapping[str, ActivePrediction]) -> None:
        """``active`` maps ids to unfinished predictions; the caller may change it at any time."""
        self._store = store
        self._active = active

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SAVE_INTERVAL)
            unsaved = [active for active in self._active.values() if active.unsaved]
            for first in range(0, len(unsaved), BATCH):
                if first:
                    await asyncio.sleep(_PAUSE)
                self._save(unsaved[first : first + BATCH])

    def save(self) -> None:
        """Queue writes of the events that are not stored yet; a later ``Store.finish`` is written after them.

        At most one write of a prediction is in progress: if one failed and the next succeeded, the stored
        output would have a gap.
        """
        self._save(self._active.values())

    def _save(self, predictions: Iterable[ActivePrediction]) -> None:
        for active in predictions:
            if active.unsaved and not active.ending and (active.saving is None or active.saving.done()):
                events, active.unsaved = active.unsaved, []
                active.saving = self._store.append(active.id, active.prediction.attempt, events)
                active.saving.add_done_callback(partial(self._saved, active, events))

    async def close(self) -> None:
        """Wait for writes in progress, then queue the last writes, which the store commits when it closes."""
        writes = [active.saving for active in self._active.values() if active.saving is not None]
        await asyncio.gather(*writes, return_exceptions=True)
        self.save()

    def _saved(self, active: ActivePrediction, events: Events, written: asyncio.Future[None]) -> None:
        error = None if written.cancelled() else written.exception()
        if error is None or isinstance(error, StatusConflict | UnstorableValue):  # `finish` reports these
            return
        _log.error("new output of prediction %s is not stored yet, retrying: %s", active.prediction, error)
        if active.saving is written and not active.ending:
            active.unsaved[:0] = events
