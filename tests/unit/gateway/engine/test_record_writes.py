"""Writes of records that are repeated after an error of the store."""

from __future__ import annotations

import pytest

from appliance.domain.errors import StatusConflict, StoreUnavailable
from appliance.domain.prediction import Prediction, Status
from appliance.gateway.engine import records
from appliance.store import Store

WAITING = Prediction(
    id="p", model="a/b", version="v", owner="me", input={}, created_at=1.0, stream_token="stream"
)
CLAIMED = WAITING.started(2.0, 0.0, None)


async def lost() -> None:
    raise StoreUnavailable("the connection was lost")


async def test_a_claim_that_was_stored_although_its_answer_was_lost_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RETRY_STORE", 0.0)
    await store.create(WAITING)
    await store.claim(CLAIMED)
    await records.claim(store, CLAIMED, lost())
    assert await store.get("p") == CLAIMED


async def test_a_claim_that_was_not_stored_is_repeated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RETRY_STORE", 0.0)
    await store.create(WAITING)
    await records.claim(store, CLAIMED, lost())
    assert await store.get("p") == CLAIMED


async def test_a_prediction_that_was_canceled_meanwhile_is_not_claimed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RETRY_STORE", 0.0)
    await store.create(WAITING)
    await store.finish(WAITING.finished(Status.CANCELED, 3.0))
    with pytest.raises(StatusConflict):
        await records.claim(store, CLAIMED, lost())
