"""Batches of items of several predictions: who shares one, cancellation, errors, and logs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Sequence

import pytest

from appliance.runners.batches import Batches

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="none")


class Doubler:
    """Doubles numbers. The first batch waits for ``go``, so that the next items wait for each other."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.names: list[str] = []
        self.go = threading.Event()
        self.began = threading.Event()

    def __call__(self, items: list[int]) -> Sequence[int | Exception]:
        self.seen.append(items)
        self.names.append(NAME.get())
        self.began.set()
        assert self.go.wait(30)
        if 13 in items:
            raise ValueError("13 is unlucky")
        return [ValueError(f"{item} is negative") if item < 0 else 2 * item for item in items]


async def began(doubler: Doubler) -> None:
    assert await asyncio.to_thread(doubler.began.wait, 30)


async def results(doubler: Doubler, batches: Batches[int, int], items: list[int]) -> list[object]:
    """Compute the first item, and the others as soon as its computation has begun."""
    first = asyncio.ensure_future(batches.result(items[0]))
    await began(doubler)
    others = [asyncio.ensure_future(batches.result(item)) for item in items[1:]]
    await asyncio.sleep(0)
    doubler.go.set()
    found: list[object] = list(await asyncio.gather(first, *others, return_exceptions=True))
    return found


async def test_items_with_the_same_key_share_a_batch_up_to_its_size() -> None:
    doubler = Doubler()
    batches = Batches(doubler, most=10, key=lambda item: item % 2, size=lambda item: item)
    assert await results(doubler, batches, [1, 2, 3, 4, 6, 5, 40]) == [2, 4, 6, 8, 12, 10, 80]
    assert doubler.seen == [[1], [2, 4], [3, 5], [6], [40]]


async def test_an_item_that_fails_fails_alone() -> None:
    doubler = Doubler()
    found = await results(doubler, Batches(doubler, most=8), [1, 2, 13, -4, 5])
    assert [found[at] for at in (0, 1, 4)] == [2, 4, 10]
    assert [str(found[at]) for at in (2, 3)] == ["13 is unlucky", "-4 is negative"]
    assert doubler.seen == [[1], [2, 13, -4, 5], [2], [13], [-4], [5]]


async def test_a_cancelled_item_leaves_the_others_of_its_batch() -> None:
    doubler = Doubler()
    batches = Batches(doubler, most=8)
    one, two = (asyncio.ensure_future(batches.result(item)) for item in (1, 2))
    await began(doubler)
    waiting = asyncio.ensure_future(batches.result(3))
    await asyncio.sleep(0)
    for task in (one, waiting):
        task.cancel()
    await asyncio.wait([one, waiting])  # before the computation ends
    assert one.cancelled()
    assert waiting.cancelled()
    doubler.go.set()
    assert await two == 4
    assert await batches.result(5) == 10
    assert doubler.seen == [[1, 2], [5]]


async def test_the_last_cancel_waits_for_the_end_of_the_computation() -> None:
    doubler = Doubler()
    batches = Batches(doubler, most=8)
    stopped: list[int] = []
    items = [
        asyncio.ensure_future(batches.result(item, on_cancel=lambda item=item: stopped.append(item)))  # type: ignore[misc]
        for item in (1, 2)
    ]
    await began(doubler)
    items[0].cancel()
    await asyncio.wait([items[0]])
    for _ in range(2):
        items[1].cancel()
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not items[1].done(), "the computation still runs"
    assert stopped == [1, 2]
    doubler.go.set()
    await asyncio.wait(items)
    assert items[1].cancelled()


async def test_output_of_a_batch_belongs_to_no_prediction() -> None:
    doubler = Doubler()
    doubler.go.set()
    batches = Batches(doubler, most=2)

    async def named(name: str, item: int) -> int:
        NAME.set(name)
        return await batches.result(item)

    assert list(await asyncio.gather(named("a", 1), named("b", 2), named("c", 3))) == [2, 4, 6]
    assert doubler.names == ["none", "c"]


@pytest.mark.parametrize("error", [MemoryError("no memory"), ValueError("x")])
async def test_the_error_of_a_batch_of_one_is_its_own(error: Exception) -> None:
    def fail(_: list[int]) -> list[int]:
        raise error

    with pytest.raises(type(error)) as raised:
        await Batches(fail, most=2).result(1)
    assert raised.value is error
