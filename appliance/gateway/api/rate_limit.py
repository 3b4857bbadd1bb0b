"""Rate limits: a token bucket for each API token and kind of request. Pure.

A refused request takes nothing from the bucket: the official JavaScript client repeats a refused request six
times within milliseconds, which would make its wait longer.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class RateLimitState(NamedTuple):
    """The state of an API token's bucket after a request."""

    limit: int  # requests a minute
    remaining: int  # requests that may be made at once
    reset: int  # seconds until the bucket is full
    retry_after: int  # seconds until a refused request may be repeated; 0 if it was not refused


class RateLimits:
    """The buckets of all API tokens."""

    def __init__(self, *, requests: int | None, predictions: int | None) -> None:
        """``predictions``: limit of created predictions a minute; ``requests``: of all other requests."""
        self._buckets: dict[tuple[str, bool], tuple[float, float]] = {}  # content, and when it was updated
        self.limit(requests=requests, predictions=predictions)

    def limit(self, *, requests: int | None, predictions: int | None) -> None:
        """Change the limits; a bucket never holds more than its limit."""
        self._limits = {False: requests, True: predictions}

    def take(self, caller: str, *, creates: bool, now: float) -> RateLimitState | None:
        """Count a request of the token with id ``caller`` at ``now``, in seconds; None without a limit."""
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
