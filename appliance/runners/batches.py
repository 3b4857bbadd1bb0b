"""Computes the items of predictions that run at the same time together, in batches."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextvars import Context, copy_context
from typing import Any, Final, Generic, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Request(NamedTuple, Generic[Item, Result]):
    item: Item
    result: asyncio.Future[Result]
    context: Context  # of the prediction
    key: Hashable
    size: int


class Batches(Generic[Item, Result]):
    """Computes items in a thread, one batch after the other. Used on one event loop only."""

    def __init__(
        self,
        compute: Callable[[list[Item]], Sequence[Result | Exception]],
        *,
        most: int,
        key: Callable[[Item], Hashable] = lambda _: None,
        size: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        """Items in one batch have the same ``key``, and their sizes are together at most ``most``.

        An item that is larger than ``most`` is computed alone. ``compute`` returns one result for each item,
        in their order; an exception is the error of its item. It runs in the context of the prediction if
        the batch has one item, and otherwise in an empty context.
        """
        self._compute: Final = compute
        self._most: Final = most
        self._key: Final = key
        self._size: Final = size
        self._waiting: deque[_Request[Item, Result]] = deque()
        self._computing: asyncio.Task[None] | None = None
        self._batch: list[_Request[Item, Result]] = []  # computed by ``_thread``
        self._thread: asyncio.Future[Any]

    async def result(self, item: Item, *, on_cancel: Callable[[], object] = lambda: None) -> Result:
        """Return the result of ``item``, computed in a batch with other items that wait.

        If a batch fails, its items are computed one by one, so that each item gets its own result or error.

        If the task is cancelled, ``on_cancel`` is called. If all items of the batch are cancelled, the last
        call returns only after the computation has ended.
        """
        request: _Request[Item, Result] = _Request(
            item,
            asyncio.get_running_loop().create_future(),
            copy_context(),
            self._key(item),
            self._size(item),
        )
        self._waiting.append(request)
        if self._computing is None or self._computing.done():
            self._computing = asyncio.get_running_loop().create_task(self._compute_all())
        try:
            return await request.result
        except asyncio.CancelledError:
            on_cancel()
            await self._ended(request)
            raise

    async def _ended(self, request: _Request[Item, Result]) -> None:
        """Wait until the batch with ``request`` has ended, unless another prediction needs its results."""
        while (
            any(each is request for each in self._batch)
            and all(each.result.done() for each in self._batch)
            and not self._thread.done()
        ):
            with contextlib.suppress(Exception, asyncio.CancelledError):  # of a second cancel
                await asyncio.shield(self._thread)

    async def _compute_all(self) -> None:
        while self._waiting:
            await self._compute_batch(self._next_batch())

    def _next_batch(self) -> list[_Request[Item, Result]]:
        """Remove and return the oldest request, and the next ones with the same key."""
        batch = [self._waiting.popleft()]
        key, size = batch[0].key, batch[0].size
        others: deque[_Request[Item, Result]] = deque()
        while self._waiting:
            request = self._waiting.popleft()
            if size + request.size <= self._most and request.key == key:
                batch.append(request)
                size += request.size
            else:
                others.append(request)
        self._waiting = others
        return batch

    async def _compute_batch(self, batch: list[_Request[Item, Result]]) -> None:
        batch = [
            request for request in batch if not request.result.done()
        ]  # done: its prediction was canceled
        if not batch:
            return
        try:
            results = await self._computed(batch)
        except Exception as error:  # noqa: BLE001  # after any error the predictions must end
            if len(batch) > 1:
                for request in batch:
                    await self._compute_batch([request])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        for request, result in zip(batch, results, strict=True):
            if request.result.done():
                continue
            if isinstance(result, Exception):
                request.result.set_exception(result)
            else:
                request.result.set_result(result)

    async def _computed(self, batch: list[_Request[Item, Result]]) -> Sequence[Result | Exception]:
        # Output of one prediction must not get into the log of another one.
        context = batch[0].context if len(batch) == 1 else Context()
        call = functools.partial(context.run, self._compute, [request.item for request in batch])
        thread = asyncio.get_running_loop().run_in_executor(None, call)
        self._batch, self._thread = batch, thread
        try:
            return await thread
        finally:
            self._batch = []
