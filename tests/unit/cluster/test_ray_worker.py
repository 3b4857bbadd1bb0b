"""The limit on the requests of Serve's controller for the list of nodes."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.cluster_node_info_cache import DefaultClusterNodeInfoCache

from appliance.cluster.ray_worker import throttled


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


class Cache:
    """Counts its updates, which fail while ``broken`` is true."""

    def __init__(self) -> None:
        self.updates = 0
        self.broken = False

    def update(self) -> None:
        if self.broken:
            raise ConnectionError
        self.updates += 1


def test_calls_within_the_interval_do_nothing() -> None:
    clock, cache, other = Clock(), Cache(), Cache()
    update = throttled(1.0, Cache.update, clock)
    for clock.now in (5.0, 5.5, 5.9, 6.0, 6.5):
        update(cache)
    assert cache.updates == 2
    update(other)
    assert other.updates == 1


def test_a_failed_call_is_repeated() -> None:
    cache = Cache()
    update = throttled(1.0, Cache.update, Clock())
    cache.broken = True
    with pytest.raises(ConnectionError):
        update(cache)
    cache.broken = False
    update(cache)
    assert cache.updates == 1


def test_the_controllers_cache_is_limited() -> None:
    requests: list[str] = []

    class Gcs:
        def get_all_node_info(self, timeout: float | None) -> dict[Any, Any]:
            requests.append("nodes")
            return {}

        def get_all_resource_usage(self, timeout: float | None) -> Any:
            raise ConnectionError

        def get_draining_nodes(self, timeout: float | None) -> dict[str, int]:
            return {}

    cache: Any = DefaultClusterNodeInfoCache(Gcs())
    cache.update()
    cache.update()
    assert requests == ["nodes"]
