"""Computations in threads, and that a cancel ends them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator

import pytest

from appliance.runners.threads import interruptible, stepwise


async def test_steps_come_one_by_one_and_off_the_loop() -> None:
    def steps() -> Generator[int, None, None]:
        for number in range(3):
            assert threading.current_thread() is not threading.main_thread()
            yield number

    assert [number async for number in stepwise(steps())] == [0, 1, 2]


async def test_an_exception_of_a_step_is_raised() -> None:
    def steps() -> Generator[int, None, None]:
        yield 1
        raise ValueError("no more")

    seen = []
    with pytest.raises(ValueError, match="no more"):
        async for number in stepwise(steps()):
            seen.append(number)
    assert seen == [1]


async def test_a_cancel_waits_for_the_current_step_and_starts_no_other() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def steps() -> Generator[int, None, None]:
        try:
            begun.set()
            go_on.wait()
            done.append("step")
            yield 1
            done.append("another step")
        finally:
            done.append("closed")

    async def consume() -> None:
        async for _ in stepwise(steps()):
            pass

    task = asyncio.create_task(consume())
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.sleep(0.05)
    assert not task.done(), "the step still computes"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["step", "closed"]


async def test_a_cancel_sets_the_event_of_the_computation() -> None:
    begun = threading.Event()
    stopped: list[bool] = []

    def compute(unwanted: threading.Event) -> None:
        begun.set()
        while not unwanted.is_set():
            time.sleep(0.005)
        stopped.append(True)
        raise RuntimeError("half done")

    task = asyncio.create_task(interruptible(compute))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped == [True]


async def test_a_result() -> None:
    assert await interruptible(lambda _: 7) == 7
