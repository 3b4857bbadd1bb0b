"""What an inference engine measures while it runs: its batch, its caches, its tokens and their latencies."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Final

import msgspec

#: Upper bounds of the buckets of ``EngineMetrics.time_to_first_token``, in seconds.
FIRST_TOKEN_BOUNDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)
#: Upper bounds of the buckets of ``EngineMetrics.inter_token_latency``, in seconds.
INTER_TOKEN_BOUNDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0),
)
_COUNTERS: Final = (
    "prompt_tokens",
    "generation_tokens",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "preemptions",
)


class Histogram(msgspec.Struct):
    """Durations, counted in buckets."""

    counts: list[int]  # of each bucket, not cumulative; the last one is for durations above all bounds
    sum: float = 0.0  # seconds

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> Histogram:
        """Return an empty histogram with these upper bounds of the buckets."""
        return cls([0] * (len(bounds) + 1))

    def observe(self, durations: Iterable[float], bounds: tuple[float, ...]) -> None:
        """Count durations in seconds; ``bounds`` are those given to ``within``."""
        for seconds in durations:
            self.counts[bisect.bisect_left(bounds, seconds)] += 1
            self.sum += seconds

    def add(self, more: Histogram) -> None:
        self.counts = [one + other for one, other in zip(self.counts, more.counts, strict=True)]
        self.sum += more.sum


class EngineMetrics(msgspec.Struct, kw_only=True, omit_defaults=True, tag="engine_metrics"):
    """The state of an inference engine, and what it has done since the previous message.

    Worker process to replica, and replica to gateway. The replica drops it if no gateway is connected.
    """

    # The state now
    running: int = 0  # requests in the batch
    waiting: int = 0  # requests that wait for a place in the batch
    kv_cache_usage: float = 0.0  # share of the KV cache that requests use, 0 to 1
    # Since the previous message
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0  # prompt tokens that were looked up in the prefix cache
    prefix_cache_hits: int = 0  # prompt tokens that were found there
    preemptions: int = 0  # requests that lost their place because the KV cache was full
    time_to_first_token: Histogram = msgspec.field(
        default_factory=lambda: Histogram.empty(FIRST_TOKEN_BOUNDS)
    )
    inter_token_latency: Histogram = msgspec.field(
        default_factory=lambda: Histogram.empty(INTER_TOKEN_BOUNDS)
    )

    def state(self) -> EngineMetrics:
        """Return a copy with the same state, in which nothing is counted."""
        return EngineMetrics(running=self.running, waiting=self.waiting, kv_cache_usage=self.kv_cache_usage)

    def add(self, later: EngineMetrics) -> None:
        """Take over the state of ``later``, and add what was done since."""
        self.running, self.waiting, self.kv_cache_usage = later.running, later.waiting, later.kv_cache_usage
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.time_to_first_token.add(later.time_to_first_token)
        self.inter_token_latency.add(later.inter_token_latency)
