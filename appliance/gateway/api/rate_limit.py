"""Rate limits: a bucket for each token and kind of request, which fills steadily and may be emptied at once.

Pure. What is refused takes nothing out, so a client that tries again at once, as the official JavaScript
client does six times within milliseconds, is not kept out for longer.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class RateLimitState(NamedTuple):
    """Where a caller stands after a request."""

    limit: int  # requests a minute
    remaining: int  # that may be made at once
    reset: int  # seconds until the bucket is full
    retry_after: int  # seconds until a refused request may be made again; 0: it was not refused


class RateLimits:
    """The buckets of every token."""

    def __init__(self, *, requests: int | None, predictions: int | None) -> None:
        """Requests a minute: creations of predictions, and all others. None is no limit."""
        self._buckets: dict[tuple[str, bool], tuple[float, float]] = {}  # what is in it, and when that was so
        self.limit(requests=requests, predictions=predictions)

    def limit(self, *, requests: int | None, predictions: int | None) -> None:
        """These from now on; a bucket never holds more than its limit."""
        self._limits = {False: requests, True: predictions}

    def take(self, caller: str, *, creates: bool, now: float) -> RateLimitState | None:
        """Count one request of the token ``caller``; None where there is no limit. ``now`` is in seconds."""
        limit = self._limits[creates]
        if limit is None:
            return None
        rate = limit / 60
        content, at = self._buckets.get((caller, creates), (float(limit), now))
        content = min(float(limit), content + (now - at) * rate)
        refused = content < 1 - 1e-9  # many small sums are a little short
        if not refused:
            content -= 1
        self._buckets[caller, creates] = content, now
        wait = math.ceil((1 - content) / rate) if refused else 0
        return RateLimitState(limit, int(content), math.ceil((limit - content) / rate), wait)
