"""Imported by each of Ray's worker processes before its first work.

So the imports of Serve take place while Ray and Serve start, and without pandas, which Serve imports if it is
installed, but does not need.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, Final

sys.modules.setdefault("pandas", None)  # type: ignore[arg-type]  # None makes the import fail

import ray.serve  # noqa: E402, F401 - after pandas is hidden
from ray.serve._private.cluster_node_info_cache import ClusterNodeInfoCache  # noqa: E402 - as above

#: Seconds between two requests of Serve's controller for the list of nodes. Serve has no option for this, and
#: asks ten times a second. That is most of the time of its control loop. The drivers
#: of all machines notice at once if processes of Ray end.
NODES_INTERVAL: Final = 1.0


def throttled(
    seconds: float, method: Callable[[Any], None], clock: Callable[[], float] = time.monotonic
) -> Callable[[Any], None]:
    """Return a method that calls ``method`` at most once in ``seconds`` for each object.

    Other calls return at once. A call that raises is not counted.
    """

    @functools.wraps(method)
    def limited(self: Any) -> None:
        last: float | None = getattr(self, "appliance_last_call", None)
        now = clock()
        if last is None or now - last >= seconds:
            method(self)
            self.appliance_last_call = now

    return limited


if not hasattr(ClusterNodeInfoCache.update, "__wrapped__"):
    _cache: Any = ClusterNodeInfoCache
    _cache.update = throttled(NODES_INTERVAL, _cache.update)
