"""Batches in which the events of running predictions are stored."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.domain.prediction import Output
from appliance.gateway.engine import saver
from appliance.gateway.engine.saver import Saver


class Written:
    """A store that keeps the ids of the predictions whose events were appended."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def append(self, id: str, attempt: int, events: Any) -> asyncio.Future[None]:
        self.ids.append(id)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


def active(id: str) -> Any:
    prediction = SimpleNamespace(attempt=1)
    return SimpleNamespace(
        id=id, prediction=prediction, unsaved=[(1, Output(["a"]))], ending=False, saving=None
    )


async def test_few_predictions_are_written_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "SAVE_INTERVAL", 0)
    monkeypatch.setattr(saver, "BATCH", 2)
    store: Any = Written()
    running = {str(number): active(str(number)) for number in range(5)}
    task = asyncio.create_task(Saver(store, running).run())
    batches: list[int] = []
    async with asyncio.timeout(60):
        while sum(batches) < 5:
            await asyncio.sleep(0)
            if new := len(store.ids) - sum(batches):
                batches.append(new)
    task.cancel()
    assert batches == [2, 2, 1]
    assert store.ids == list("01234")


async def test_the_last_save_writes_all_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "BATCH", 2)
    store: Any = Written()
    Saver(store, {str(number): active(str(number)) for number in range(5)}).save()
    assert store.ids == list("01234")
