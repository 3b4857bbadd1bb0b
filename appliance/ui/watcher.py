"""Follow a prediction through the API until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final

import msgspec

from appliance.domain.errors import ApplianceError
from appliance.protocols.admin_types import ApplianceStatusResponse, ModelStatus
from appliance.ui.client import Caller

_POLL_INTERVAL: Final = 0.7  # seconds between two requests for the status and the logs
_MIN_INTERVAL: Final = 0.1  # seconds between two snapshots, at least
ENDED: Final = frozenset({"succeeded", "failed", "canceled", "aborted"})


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a prediction at one moment."""

    record: dict[str, Any]  # the prediction as the API returns it
    items: list[str]  # the items of output that the stream has sent
    seconds: float  # since the prediction was created
    model: ModelStatus | None = None  # the state of its model, before the prediction starts

    @property
    def ended(self) -> bool:
        return self.record["status"] in ENDED

    @property
    def status(self) -> str:
        """The prediction's status, shown as ``processing`` once output has arrived on the stream."""
        status: str = self.record["status"]
        return "processing" if status == "starting" and self.items else status

    @property
    def output(self) -> Any:
        return self.record.get("output") if self.ended else self.items


class Watcher:
    """Follows one prediction from its creation to its end."""

    def __init__(self, caller: Caller, created: dict[str, Any]) -> None:
        """``created`` is the prediction as the API returns it, at its creation or later."""
        self._caller = caller
        self._record = created
        self._items: list[str] = []
        self._model: ModelStatus | None = None
        self._changed = asyncio.Event()
        age = time.time() - datetime.fromisoformat(created["created_at"]).timestamp()
        self._began = time.monotonic() - max(age, 0.0)

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """Yield a snapshot at each change. The last snapshot shows the ended prediction.

        Raises:
            ApplianceError: the API no longer answers.
        """
        snapshot = self._now()
        yield snapshot
        tasks = [asyncio.ensure_future(self._stream()), asyncio.ensure_future(self._poll())]
        try:
            while not snapshot.ended:
                await self._changed.wait()
                self._changed.clear()
                for task in tasks:
                    if task.done():
                        task.result()
                snapshot = self._now()
                yield snapshot
                await asyncio.sleep(_MIN_INTERVAL)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _now(self) -> Snapshot:
        seconds = time.monotonic() - self._began
        return Snapshot(record=self._record, items=list(self._items), seconds=seconds, model=self._model)

    async def _stream(self) -> None:
        with contextlib.suppress(ApplianceError):  # the polled record has the same output
            async for event in self._caller.stream(self._record["urls"]["stream"]):
                if event.name == "output":
                    self._items.append(event.data)
                    self._changed.set()
        await self._refresh()

    async def _poll(self) -> None:
        try:
            while self._record["status"] not in ENDED:
                await asyncio.sleep(_POLL_INTERVAL)
                await self._refresh()
        finally:
            self._changed.set()

    async def _refresh(self) -> None:
        self._record = await self._caller.get(f"/v1/predictions/{self._record['id']}")
        self._model = None
        if self._record["status"] == "starting":
            known = (await self._caller.get_as(ApplianceStatusResponse, "/admin/status")).models
            name = self._record["model"]
            self._model = next((model for model in known if model.name == name), None)
        self._changed.set()
