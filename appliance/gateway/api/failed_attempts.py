"""Counts requests with unknown tokens by IP address, and slows down addresses that send many. Pure."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict, deque
from typing import Final

#: An address may send this many unknown tokens within ``WINDOW`` seconds.
MOST: Final = 20
WINDOW: Final = 60.0
_REMEMBERED: Final = 10_000  # addresses, at most; the one that failed longest ago is forgotten first


class FailedAttempts:
    """The times of the last failures of each address."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def record(self, address: str, now: float) -> int:
        """Count a failure at ``now``, in seconds; return the seconds to wait, 0 if the address may go on.

        A refused attempt is not counted, so the wait does not grow with the attempts.
        """
        key = _network(address)
        times = self._failures.setdefault(key, deque())
        self._failures.move_to_end(key)
        while times and times[0] <= now - WINDOW:
            times.popleft()
        if len(times) >= MOST:
            return max(1, math.ceil(times[0] + WINDOW - now))
        times.append(now)
        if len(self._failures) > _REMEMBERED:
            self._failures.popitem(last=False)
        return 0


def _network(address: str) -> str:
    """Return ``address``; for IPv6 its /64 network, all of whose addresses one client may have."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return address
