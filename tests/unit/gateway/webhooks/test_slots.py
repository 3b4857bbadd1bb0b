"""Delivery slots that owners and hostnames share."""

from __future__ import annotations

import asyncio

import pytest

from appliance.gateway.webhooks.slots import DeliverySlots
from appliance.store import Receiver

MINE = Receiver("me", "a.example")


def taken(slots: DeliverySlots, receiver: Receiver) -> int:
    """How many it gets one after the other."""
    count = 0
    while slots.take(receiver):
        count += 1
    return count


def test_one_hostname_leaves_some_for_the_same_owner_s_others_and_one_owner_for_everyone_else() -> None:
    slots = DeliverySlots(64)
    assert taken(slots, MINE) == 22
    assert taken(slots, Receiver("me", "b.example")) > 0
    held = 64 - sum(taken(slots, Receiver("me", f"{number}.example")) for number in range(100))
    assert held > 20  # however many hostnames one owner names
    for owner in ("you", "they"):
        assert taken(slots, Receiver(owner, "a.example")) >= 3


async def test_whoever_waits_gets_one_as_soon_as_it_may() -> None:
    slots = DeliverySlots(8)
    assert taken(slots, MINE) == 3
    waiting = [asyncio.ensure_future(slots.wait(MINE)) for _ in range(3)]
    other = asyncio.ensure_future(slots.wait(Receiver("you", "a.example")))
    await asyncio.sleep(0)
    assert [each.done() for each in (*waiting, other)] == [False, False, False, True]
    slots.give_back(MINE)
    await asyncio.sleep(0)
    assert [each.done() for each in waiting] == [True, False, False]
    waiting[1].cancel()
    slots.give_back(MINE)
    await asyncio.sleep(0)
    assert waiting[2].done()


async def test_a_slot_that_comes_while_its_wait_is_given_up_is_not_lost() -> None:
    slots = DeliverySlots(4)
    assert taken(slots, MINE) == 2
    waiting = asyncio.ensure_future(slots.wait(MINE))
    await asyncio.sleep(0)
    slots.give_back(MINE)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert taken(slots, MINE) == 1
