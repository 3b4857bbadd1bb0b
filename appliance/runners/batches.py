"""Computes the items of predictions that run at the same time together, in batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Request(NamedTuple, Generic[Item, Result]):
    item: Item
    result: asyncio.Future[Result]


class Batches(Generic[Item, Result]):
    """Computes items in a thread, one batch after the other. Used on one event loop only."""

    def __init__(
        self,
        compute: Callable[[list[Item]], list[Result]],
        *,
        most: int,
        key: Callable[[Item], Hashable] = lambda _: None,
    ) -> None:
        """Items in one batch have the same ``key``, and are at most ``most``.

        ``compute`` returns one result for each item, in their order.
        """
        self._compute: Final = compute
        self._most: Final = most
        self._key: Final = key
        self._waiting: deque[_Request[Item, Result]] = deque()
        self._computing: asyncio.Task[None] | None = None

    async def result(self, item: Item) -> Result:
        """Return the result of ``item``, computed in a batch with other items that wait.

        If a batch fails, its items are computed one by one, so that each item gets its own result or error.
        """
        request: _Request[Item, Result] = _Request(item, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._computing is None or self._computing.done():
            self._computing = asyncio.get_running_loop().create_task(self._compute_all())
        return await request.result

    async def _compute_all(self) -> None:
        while self._waiting:
            await self._compute_batch(self._next_batch())

    def _next_batch(self) -> list[_Request[Item, Result]]:
        """Remove and return the oldest request, and the next ones with the same key."""
        batch = [self._waiting.popleft()]
        key = self._key(batch[0].item)
        others: deque[_Request[Item, Result]] = deque()
        while self._waiting:
            request = self._waiting.popleft()
            fits = len(batch) < self._most and self._key(request.item) == key
            (batch if fits else others).append(request)
        self._waiting = others
        return batch

    async def _compute_batch(self, batch: list[_Request[Item, Result]]) -> None:
        batch = [
            request for request in batch if not request.result.done()
        ]  # done: its prediction was canceled
        if not batch:
            return
        try:
            results = await asyncio.to_thread(self._compute, [request.item for request in batch])
        except Exception as error:  # noqa: BLE001  # after any error the predictions must end
            if len(batch) > 1:
                for request in batch:
                    await self._compute_batch([request])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        for request, result in zip(batch, results, strict=True):
            if not request.result.done():
                request.result.set_result(result)
