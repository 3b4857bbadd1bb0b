"""A bounded number of slots, shared fairly between owners and the hosts that they send to."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import NamedTuple


class Receiver(NamedTuple):
    """Where an owner's requests go."""

    owner: str
    host: str


class Slots:
    """Belongs to one event loop.

    An owner gets a slot while it holds fewer than are free, and one for a host while it holds fewer there
    than half of those (dynamic thresholds, Choudhury and Hahne 1998). So whoever holds slots for long leaves
    some for everyone else, and nobody's are kept empty for owners that send nothing.
    """

    def __init__(self, count: int) -> None:
        """All ``count`` slots are free."""
        self._free = count
        self._owners: Counter[str] = Counter()
        self._receivers: Counter[Receiver] = Counter()
        self._waiting: dict[Receiver, deque[asyncio.Future[None]]] = {}

    def take(self, receiver: Receiver) -> bool:
        """Take a slot if this receiver may have one now."""
        if self._owners[receiver.owner] >= self._free or 2 * self._receivers[receiver] >= self._free:
            return False
        self._free -= 1
        self._owners[receiver.owner] += 1
        self._receivers[receiver] += 1
        return True

    async def wait(self, receiver: Receiver) -> None:
        """Take a slot as soon as this receiver may have one."""
        if receiver not in self._waiting and self.take(receiver):
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(receiver, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # it came just before
                self.give_back(receiver)
            raise

    def give_back(self, receiver: Receiver) -> None:
        """The slot is free again."""
        self._free += 1
        self._owners[receiver.owner] -= 1
        self._receivers[receiver] -= 1
        if not self._receivers[receiver]:  # hosts are as many as callers name: none is kept for nothing
            del self._receivers[receiver]
        for waiting in list(self._waiting):
            self._grant(waiting)

    def _grant(self, receiver: Receiver) -> None:
        """Give slots to those that wait for this receiver, in their order."""
        queue = self._waiting.pop(receiver)
        while queue and (queue[0].done() or self.take(receiver)):
            granted = queue.popleft()
            if not granted.done():  # else whoever waited has gone, and no slot was taken
                granted.set_result(None)
        if queue:  # behind the others: they are first the next time
            self._waiting[receiver] = queue
