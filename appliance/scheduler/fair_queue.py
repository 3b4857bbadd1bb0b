"""The queue of one model, shared fairly between accounts.

This is self-clocked fair queueing (Golestani, "A self-clocked fair queueing scheme for broadband
applications", 1994) with predictions in place of packets. Each prediction gets a finish tag when it is
queued: the virtual time, or the tag of the account's last queued prediction if that is later, plus 1 divided
by the account's weight. The lowest tag starts first. The virtual time is the tag of the prediction that
started last.

So each account with queued predictions gets a share of the starts in proportion to its weight, however many
predictions others have queued. No prediction waits for ever, because only finitely many tags are below its
own.

The queues of a model's instances share one virtual time, so that their tags can be compared.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple


class _Place(NamedTuple):
    tag: float
    number: int  # counts the predictions of the queue: of equal tags, the earlier prediction starts first
    id: str
    account: str


class _VirtualTime:
    """The virtual time of queues whose tags can be compared."""

    def __init__(self) -> None:
        self.now = 0.0


class FairQueue:
    """Ids of predictions, in the order in which they start."""

    def __init__(self) -> None:
        self._inserted: list[str] = []  # predictions without a place, which start before those with one
        self._order: list[_Place] = []  # sorted
        self._places: dict[str, _Place] = {}  # by id
        self._virtual_time = _VirtualTime()
        self._added = 0
        self._of_account: dict[str, list[_Place]] = {}  # sorted

    def __len__(self) -> int:
        return len(self._inserted) + len(self._order)

    def __iter__(self) -> Iterator[str]:
        return chain(self._inserted, (place.id for place in self._order))

    @property
    def first(self) -> str:
        return self._inserted[0] if self._inserted else self._order[0].id

    def index(self, id: str) -> int:
        place = self._places.get(id)
        if place is None:
            return self._inserted.index(id)
        return len(self._inserted) + bisect_left(self._order, place)

    def tag(self, id: str) -> float:
        """Return the finish tag of a prediction; it is below all others if the prediction was inserted."""
        place = self._places.get(id)
        return -math.inf if place is None else place.tag

    def share_virtual_time(self, other: FairQueue) -> None:
        """Use one virtual time with ``other`` from now on: the later one of both."""
        if self._virtual_time is not other._virtual_time:
            other._virtual_time.now = max(self._virtual_time.now, other._virtual_time.now)
            self._virtual_time = other._virtual_time

    def add(self, id: str, account: str, priority: int) -> None:
        """Add a prediction at its fair place. Each step of ``priority`` doubles the weight of the account."""
        queued = self._of_account.setdefault(account, [])
        last = queued[-1].tag if queued else 0.0
        self._added += 1
        place = _Place(max(self._virtual_time.now, last) + 2.0**-priority, self._added, id, account)
        self._places[id] = place
        queued.append(place)
        insort(self._order, place)

    def insert(self, position: int, id: str) -> None:
        """Add a prediction before all that have a fair place, at ``position`` of those that were inserted."""
        self._inserted.insert(position, id)

    def start(self, id: str) -> None:
        """Remove a prediction because it starts, which advances the virtual time."""
        place = self._places.get(id)
        if place is not None:
            self._virtual_time.now = max(self._virtual_time.now, place.tag)
        self.remove(id)

    def remove(self, id: str) -> None:
        """Remove a prediction; the account's next one comes after those that the account still has queued."""
        place = self._places.pop(id, None)
        if place is None:
            self._inserted.remove(id)
            return
        del self._order[bisect_left(self._order, place)]
        queued = self._of_account[place.account]
        del queued[bisect_left(queued, place)]
        if not queued:
            del self._of_account[place.account]
