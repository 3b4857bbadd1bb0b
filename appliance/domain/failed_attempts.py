"""Counts failed sign-ins by IP address or account; those with too many must wait. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Final

#: By default, this many attempts may fail within ``WINDOW`` seconds.
MOST: Final = 20
WINDOW: Final = 60.0
_REMEMBERED: Final = 10_000  # keys, at most; the one that failed longest ago is forgotten first


class FailedAttempts:
    """The times of the last failures of each key: an account, or the network of an address."""

    def __init__(self, most: int = MOST, window: float = WINDOW) -> None:
        """Within ``window`` seconds, ``most`` attempts with the same key may fail."""
        self._most = most
        self._window = window
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def retry_after(self, key: str, now: float) -> int:
        """Return the seconds until the next attempt may be made; 0 if it may be made ``now``, in seconds."""
        times = self._failures.get(key)
        if times is None:
            return 0
        while times and times[0] <= now - self._window:
            times.popleft()
        return max(1, math.ceil(times[0] + self._window - now)) if len(times) >= self._most else 0

    def record(self, key: str, now: float) -> int:
        """Count a failure at ``now``, unless the attempt must wait; return the seconds to wait, else 0.

        A refused attempt is not counted, so the wait does not grow with the attempts.
        """
        wait = self.retry_after(key, now)
        if wait:
            self._failures.move_to_end(key)
            return wait
        self._failures.setdefault(key, deque()).append(now)
        self._failures.move_to_end(key)
        if len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)
        return 0

    def withdraw(self, key: str) -> None:
        """Remove the last failure of a key, which was counted before the attempt succeeded."""
        times = self._failures.get(key)
        if times:
            times.pop()

    def forget(self, key: str) -> None:
        """Forget all failures of a key."""
        self._failures.pop(key, None)
