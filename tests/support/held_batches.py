"""Lets predictions of a runner wait for each other, so that they share a batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from appliance.runners.batches import Batches
from tests.support.appliance_process import until


class HeldBatches:
    """Batches whose first computation waits for ``go``; ``seen`` has the number of items of each."""

    def __init__(self, batches: Batches[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self._batches = batches
        self._began = threading.Event()
        self.go = threading.Event()
        self.seen: list[int] = []
        compute = batches._compute

        def held(items: list[Any]) -> Any:
            self.seen.append(len(items))
            if not self._began.is_set():
                self._began.set()
                assert self.go.wait(60)
            return compute(items)

        monkeypatch.setattr(batches, "_compute", held)

    async def started(self, predictions: list[Coroutine[Any, Any, Any]]) -> list[asyncio.Task[Any]]:
        """Start all; return when the first one computes and the others wait."""
        first = asyncio.ensure_future(predictions[0])
        await until(self._began.is_set)
        others = [asyncio.ensure_future(each) for each in predictions[1:]]
        await until(lambda: len(self._batches._waiting) == len(others))
        return [first, *others]
