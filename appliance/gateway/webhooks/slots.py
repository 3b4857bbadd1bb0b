"""Limits simultaneous deliveries; shares the slots fairly between owners and between receiving hosts."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

from appliance.store import Receiver


class DeliverySlots:
    """Slots for simultaneous deliveries on one event loop.

    An owner gets another slot while the owner holds fewer slots than are free. For one hostname, an owner
    gets another slot while the owner's slots for that hostname number less than half of the free slots
    (dynamic thresholds, Choudhury and Hahne 1998). So owners that hold slots for long leave some to others,
    and no slots are reserved for idle owners.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._owners: Counter[str] = Counter()
        self._receivers: Counter[Receiver] = Counter()
        self._waiting: dict[Receiver, deque[asyncio.Future[None]]] = {}

    def take(self, receiver: Receiver) -> bool:
        """Take a slot if this receiver may have one now; return whether a slot was taken."""
        if self._owners[receiver.owner] >= self._free or 2 * self._receivers[receiver] >= self._free:
            return False
        self._free -= 1
        self._owners[receiver.owner] += 1
        self._receivers[receiver] += 1
        return True

    async def wait(self, receiver: Receiver) -> None:
        """Wait until this receiver may have a slot, and take the slot."""
        if receiver not in self._waiting and self.take(receiver):
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(receiver, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # granted just before the cancellation
                self.give_back(receiver)
            raise

    def give_back(self, receiver: Receiver) -> None:
        """Free a slot of this receiver."""
        self._free += 1
        self._owners[receiver.owner] -= 1
        self._receivers[receiver] -= 1
        if not self._receivers[receiver]:  # unused entries are removed, because hostnames have no limit
            del self._receivers[receiver]
        for waiting in list(self._waiting):
            self._grant(waiting)

    def _grant(self, receiver: Receiver) -> None:
        """Give free slots to the tasks that wait for this receiver, first come first served."""
        queue = self._waiting.pop(receiver)
        while queue and (queue[0].done() or self.take(receiver)):
            granted = queue.popleft()
            if not granted.done():  # done: the waiter was cancelled and takes no slot
                granted.set_result(None)
        if queue:  # moved to the end, so that other receivers are first next time
            self._waiting[receiver] = queue
