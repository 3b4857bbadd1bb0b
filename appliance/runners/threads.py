"""Runs blocking computations in threads; a cancel is raised only after the computation has stopped."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Generator
from typing import Final, TypeVar, cast

T = TypeVar("T")
_END: Final = object()


async def stepwise(steps: Generator[T, None, None]) -> AsyncIterator[T]:
    """The items of ``steps``, each computed in a thread.

    A cancel waits for the item under way and asks for no further one, so that nothing computes any more when
    it is passed on.
    """
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, steps, _END))
            item = await _whole(step)
            if item is _END:
                return
            yield cast("T", item)
    finally:
        await asyncio.to_thread(steps.close)


async def interruptible(compute: Callable[[threading.Event], T]) -> T:
    """Run ``compute`` in a thread and return its result; the event tells it to stop."""
    unwanted = threading.Event()
    step = asyncio.ensure_future(asyncio.to_thread(compute, unwanted))
    return await _whole(step, unwanted)


async def _whole(step: asyncio.Future[T], unwanted: threading.Event | None = None) -> T:
    """The result of ``step``, which is over when a cancel is passed on."""
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        if unwanted is not None:
            unwanted.set()
        with contextlib.suppress(Exception):  # nobody asks for the result any more
            await step
        raise
