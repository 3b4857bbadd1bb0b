"""The queue of one model, shared fairly between accounts.

This is self-clocked fair queueing (Golestani, "A self-clocked fair queueing scheme for broadband
applications", 1994) with predictions in place of packets. Each prediction gets a finish tag when it is
queued: the virtual time, or the tag of the account's last queued prediction if that is later, plus 1 divided
by the account's weight. The lowest tag starts first. The virtual time is the tag of the prediction that
started last.

So accounts that always have queued predictions start predictions in proportion to their weights, whoever has
queued more. No prediction waits for ever, because only finitely many tags are below its own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple


class _Place(NamedTuple):
    account: str
    tag: float


class FairQueue:
    """Ids of predictions, in the order in which they start."""

    def __init__(self) -> None:
        self._ids: deque[str] = deque()
        self._places: dict[str, _Place] = {}  # by id; without the predictions that ``insert`` has added
        self._virtual_time = 0.0
        self._last: dict[str, float] = {}  # by account with places: its highest tag
        self._counts: Counter[str] = Counter()  # of places, by account

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    @property
    def first(self) -> str:
        return self._ids[0]

    def index(self, id: str) -> int:
        return self._ids.index(id)

    def add(self, id: str, account: str, priority: int) -> None:
        """Add a prediction at its fair place. Each step of ``priority`` doubles the weight of the account."""
        tag = max(self._virtual_time, self._last.get(account, 0.0)) + 2.0**-priority
        self._last[account] = tag
        self._counts[account] += 1
        self._places[id] = _Place(account, tag)
        behind = 0  # predictions that start later; none if only one account has queued predictions
        for other in reversed(self._ids):
            place = self._places.get(other)
            if place is None or place.tag <= tag:
                break
            behind += 1
        self._ids.insert(len(self._ids) - behind, id)

    def insert(self, position: int, id: str) -> None:
        """Add a prediction at ``position``, such as 0 for the first to start, whoever has queued it."""
        self._ids.insert(position, id)

    def start(self, id: str) -> None:
        """Remove a prediction because it starts, which advances the virtual time."""
        place = self._places.get(id)
        if place is not None:
            self._virtual_time = max(self._virtual_time, place.tag)
        self.remove(id)

    def remove(self, id: str) -> None:
        self._ids.remove(id)
        place = self._places.pop(id, None)
        if place is None:
            return
        self._counts[place.account] -= 1
        if not self._counts[place.account]:
            del self._counts[place.account], self._last[place.account]
        if not self._places:
            self._virtual_time = 0.0
