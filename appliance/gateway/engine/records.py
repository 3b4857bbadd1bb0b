"""Writes records of predictions; retries each write until the store accepts it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from appliance.domain.errors import (
    ApplianceError,
    BucketUnavailable,
    DiskFull,
    StatusConflict,
    StoreError,
    UnstorableValue,
)
from appliance.domain.prediction import Prediction, Status
from appliance.gateway.engine.active import ActivePrediction
from appliance.store import RETRY_STORE, Store

_log = logging.getLogger(__name__)


async def finalized(
    finalize: Callable[[Prediction], Awaitable[Prediction]], record: Prediction
) -> Prediction:
    """Return the record of a succeeded training with its version, or a failed record.

    While the disk is full, the store refuses the version, or the bucket with the weights does not answer,
    ``finalize`` is retried; it must be idempotent.
    """
    while True:
        try:
            return await finalize(record)
        except (ApplianceError, OSError) as error:
            refused = isinstance(error, StoreError) and not isinstance(error, UnstorableValue)
            refused = refused or isinstance(error, BucketUnavailable)
            if not refused and not DiskFull.is_cause_of(error):
                reason = error.detail if isinstance(error, ApplianceError) else str(error)
                return record.evolve(
                    status=Status.FAILED,
                    error=f"the training's new version could not be created: {reason}",
                    output=None,
                )
            _log.error("the version that training %s made is not stored yet, retrying: %s", record, error)
            await asyncio.sleep(RETRY_STORE)


async def claim(store: Store, record: Prediction, stored: Awaitable[None]) -> None:
    """Return once the claim of a prediction is stored; ``stored`` is the first attempt to write the claim.

    Raises:
        StatusConflict: the prediction is not ``starting``, for example because it was canceled.
    """
    failed = False
    while True:
        try:
            try:
                return await stored
            except StatusConflict:
                # A server may have committed a claim although its answer was lost.
                if failed and await _is_claimed(store, record):
                    return None
                raise
        except StatusConflict:
            raise
        except StoreError as error:  # for example a full disk
            failed = True
            _log.error("the start of prediction %s is not stored yet, retrying: %s", record, error)
            await asyncio.sleep(RETRY_STORE)
            stored = store.claim(record)


async def _is_claimed(store: Store, record: Prediction) -> bool:
    stored = await store.get(record.id)
    return stored is not None and (stored.status, stored.attempt) == (record.status, record.attempt)


async def end(store: Store, record: Prediction, written: Awaitable[None]) -> Prediction:
    """Return the terminal record once it is stored; ``written`` is the first attempt to write it.

    The returned record differs from ``record`` if the output cannot be encoded, or if the prediction had
    ended before.
    """
    while True:
        try:
            await written
            return record
        except StatusConflict:
            _log.exception(
                "prediction %s had already ended: its stored result is kept and the new result is dropped",
                record,
            )
            return await store.get(record.id) or record
        except UnstorableValue as error:
            reason = f"the output of model {record.model} cannot be stored: {error}"
            _log.error("prediction %s fails: %s", record, reason)
            record = record.evolve(status=Status.FAILED, error=reason, output=None, logs="", metrics={})
        except StoreError as error:  # for example a full disk
            _log.error("the end of prediction %s is not stored yet, retrying: %s", record, error)
            await asyncio.sleep(RETRY_STORE)
        written = store.finish(record)


def ended(active: ActivePrediction, record: Prediction, status: Status, error: str | None) -> Prediction:
    """Return the terminal record that follows from ``record``, the latest record of the run."""
    record = record.finished(status, time.time(), error)
    if status is Status.SUCCEEDED and record.output is None and active.iterates:
        record = record.evolve(output=[])  # as on Replicate: clients join or iterate over the output
    return record


async def requeue(store: Store, record: Prediction) -> None:
    """Store that a prediction is queued again, unless its end is stored or about to be stored."""
    while True:
        try:
            return await store.requeue(record)
        except StatusConflict:
            return None
        except StoreError as error:
            _log.error(
                "prediction %s was queued again, but its status is not stored yet, retrying: %s",
                record,
                error,
            )
            await asyncio.sleep(RETRY_STORE)
