"""Rate limits: a token bucket for each API token and kind of request. Pure.

A refused request takes nothing from the bucket, so a client that repeats it at once, as the official
JavaScript client does six times within milliseconds, does not have to wait longer.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class RateLimitState(NamedTuple):
    """The state of a caller's bucket after a request."""

    limit: int  # requests a minute
    remaining: int  # that may be made at once
    reset: int  # seconds until the bucket is full
    retry_after: int  # seconds until a refused request may be repeated; 0 if it was not refused


class RateLimits:
    """The buckets of all tokens."""

    def __init__(self, *, requests: int | None, predictions: int | None) -> None:
        """Limits a minute: of created predictions, and of all other requests; None is no limit."""
        self._buckets: dict[tuple[str, bool], tuple[float, float]] = {}  # content, and when it was updated
        self.limit(requests=requests, predictions=predictions)

    def limit(self, *, requests: int | None, predictions: int | None) -> None:
        """Change the limits; a bucket never holds more than its limit."""
        self._limits = {False: requests, True: predictions}

    def take(self, caller: str, *, creates: bool, now: float) -> RateLimitState | None:
        """Count one request of the token ``caller``; None without a limit. ``now`` is in seconds."""
        limit = self._limits[creates]
        if limit is None:
            return None
        rate = limit / 60
        content, at = self._buckets.get((caller, creates), (float(limit), now))
        content = min(float(limit), content + (now - at) * rate)
        refused = content < 1 - 1e-9  # tolerance for rounding errors
        if not refused:
            content -= 1
        self._buckets[caller, creates] = content, now
        wait = math.ceil((1 - content) / rate) if refused else 0
        return RateLimitState(limit, int(content), math.ceil((limit - content) / rate), wait)
