"""The limit on the runs of each visitor of a demo."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from appliance.domain.access import client_network
from appliance.domain.errors import Throttled

_HOUR: Final = 3600.0


class Visitors:
    """Counts the runs of each visitor in the last hour. A visitor is identified by the IP address."""

    def __init__(self, runs_per_hour: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Without ``runs_per_hour`` there is no limit."""
        self._most = runs_per_hour
        self._clock = clock
        self._runs: dict[str, deque[float]] = {}  # times of the runs by visitor, oldest first

    def count(self, host: str) -> None:
        """Count a run of the visitor at the IP address ``host``.

        Raises:
            Throttled: the visitor has used up the runs of this hour.
        """
        if self._most is None:
            return
        now = self._clock()
        for visitor, times in list(self._runs.items()):
            while times and times[0] <= now - _HOUR:
                times.popleft()
            if not times:
                del self._runs[visitor]
        runs = self._runs.setdefault(client_network(host), deque())
        if len(runs) >= self._most:
            seconds = runs[0] + _HOUR - now
            raise Throttled(
                f"Each visitor can run this demo {self._most} times in an hour: try again in "
                f"{max(1, round(seconds / 60))} min.",
                retry_after=round(seconds),
            )
        runs.append(now)
