"""Runs blocking computations in threads; a cancel is raised only after the computation has stopped."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")
_END: Final = object()


async def stepwise(steps: Generator[T, None, None]) -> AsyncIterator[T]:
    """Yield the items of ``steps``, each computed in a thread. A cancel waits for the current item."""
    try:
        while (item := await uninterruptible(next, steps, _END)) is not _END:
            yield cast("T", item)
    finally:
        await asyncio.to_thread(steps.close)


async def interruptible(compute: Callable[[threading.Event], T]) -> T:
    """Run ``compute`` in a thread and return its result.

    If the task is cancelled, set the event, wait until ``compute`` has returned, and then raise.
    """
    cancelled = threading.Event()
    return await uninterruptible(compute, cancelled, on_cancel=cancelled.set)


async def uninterruptible(
    function: Callable[..., T], *arguments: Any, on_cancel: Callable[[], None] = lambda: None
) -> T:
    """Call ``function`` in a thread and return its result.

    If the task is cancelled, call ``on_cancel``, wait until ``function`` has returned, and then raise.
    """
    call = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        on_cancel()
        with contextlib.suppress(Exception):  # the result is no longer needed
            await call
        raise
