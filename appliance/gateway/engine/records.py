"""Writes of predictions that must be made, however long the store refuses them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from appliance.domain.errors import ApplianceError, DiskFull, StatusConflict, StoreError, Unstorable
from appliance.domain.prediction import Prediction, Status
from appliance.store import RETRY_STORE, Store

_log = logging.getLogger(__name__)


async def concluded_by(
    finalize: Callable[[Prediction], Awaitable[Prediction]], record: Prediction
) -> Prediction:
    """Return what ``finalize`` makes of a finished training, or a failure if it could not make the version.

    While the disk is full or the store refuses the version, ``finalize`` is tried again; it is idempotent.
    """
    while True:
        try:
            return await finalize(record)
        except (ApplianceError, OSError) as error:
            refused = isinstance(error, StoreError) and not isinstance(error, Unstorable)
            if not refused and not DiskFull.caused(error):
                reason = error.detail if isinstance(error, ApplianceError) else str(error)
                return record.evolve(
                    status=Status.FAILED, error=f"the new version could not be made: {reason}", output=None
                )
            _log.error("the version that training %s made is not stored yet: %s", record, error)
            await asyncio.sleep(RETRY_STORE)


class Records:
    """One per engine."""

    def __init__(self, store: Store) -> None:
        """``store`` is where they are written."""
        self._store = store

    async def end(self, record: Prediction) -> Prediction:
        """Store a terminal record, however long that takes; returns what is stored."""
        while True:
            try:
                await self._store.finish(record)
                return record
            except StatusConflict:
                _log.exception("prediction %s was finished by someone else", record)
                return await self._store.get(record.id) or record
            except Unstorable as error:
                reason = f"the output of model {record.model} cannot be stored: {error}"
                _log.error("prediction %s fails: %s", record, reason)
                record = record.evolve(status=Status.FAILED, error=reason, output=None, logs="", metrics={})
            except StoreError as error:  # a full disk, say: the end is kept and written when it can be
                _log.error("the end of prediction %s could not be stored: %s", record, error)
                await asyncio.sleep(RETRY_STORE)

    async def requeue(self, record: Prediction) -> None:
        """Store that a prediction waits again, unless its end is there, or on its way."""
        while True:
            try:
                return await self._store.requeue(record)
            except StatusConflict:  # its end is on its way to the store, or there
                return None
            except StoreError as error:
                _log.error("prediction %s could not be queued again, it waits: %s", record, error)
                await asyncio.sleep(RETRY_STORE)
