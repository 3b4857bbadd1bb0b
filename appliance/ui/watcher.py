"""A prediction while it runs, as its stream and its record tell it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from appliance.domain.errors import ApplianceError
from appliance.ui.client import Caller

_RECORD_EVERY: Final = 0.7  # seconds between two looks at status and logs
_SHOW_EVERY: Final = 0.1  # seconds that pass between two pictures of it, at least
ENDED: Final = frozenset({"succeeded", "failed", "canceled", "aborted"})


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the watched prediction at one moment."""

    record: dict[str, Any]  # as the API tells it
    items: list[str]  # of output, as they came in the stream
    seconds: float  # since it was created
    model: dict[str, Any] | None = None  # what its model does, while it waits for it

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.record["status"] in ENDED

    @property
    def status(self) -> str:
        """Its status. What has output runs, whatever the record said the last time that it was looked at."""
        status: str = self.record["status"]
        return "processing" if status == "starting" and self.items else status

    @property
    def output(self) -> Any:
        """All output there is so far."""
        return self.record.get("output") if self.over else self.items


class Watcher:
    """Follows one prediction from its creation to its end."""

    def __init__(self, caller: Caller, created: dict[str, Any]) -> None:
        """``created`` is the answer to its creation."""
        self._caller = caller
        self._record = created
        self._items: list[str] = []
        self._model: dict[str, Any] | None = None
        self._news = asyncio.Event()
        self._began = time.monotonic()

    async def seen(self) -> AsyncIterator[Seen]:
        """How it stands, whenever that has changed; the last one is its end.

        Raises:
            ApplianceError: the API does not tell any more.
        """
        seen = self._now()
        yield seen
        tasks = [asyncio.ensure_future(self._stream()), asyncio.ensure_future(self._look())]
        try:
            while not seen.over:
                await self._news.wait()
                self._news.clear()
                for task in tasks:
                    if task.done():
                        task.result()
                seen = self._now()
                yield seen
                await asyncio.sleep(_SHOW_EVERY)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _now(self) -> Seen:
        seconds = time.monotonic() - self._began
        return Seen(record=self._record, items=list(self._items), seconds=seconds, model=self._model)

    async def _stream(self) -> None:
        with contextlib.suppress(ApplianceError):  # the record tells the same, later
            async for event in self._caller.stream(self._record["urls"]["stream"]):
                if event.name == "output":
                    self._items.append(event.data)
                    self._news.set()
        await self._refresh()

    async def _look(self) -> None:
        try:
            while self._record["status"] not in ENDED:
                await asyncio.sleep(_RECORD_EVERY)
                await self._refresh()
        finally:
            self._news.set()

    async def _refresh(self) -> None:
        self._record = await self._caller.get(f"/v1/predictions/{self._record['id']}")
        self._model = None
        if self._record["status"] == "starting":
            known = (await self._caller.get("/admin/status"))["models"]
            name = self._record["model"]
            self._model = next((model for model in known if model["name"] == name), None)
        self._news.set()
