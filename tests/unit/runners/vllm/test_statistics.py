"""The measurements of vLLM's engine. ``tests/integration/test_vllm.py`` tests them with a real engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from appliance.domain.engine_metrics import EngineMetrics
from appliance.runners.vllm.statistics import REPORT_INTERVAL, Statistics, StatsThrottle


def scheduler(running: int = 0, waiting: int = 0, usage: float = 0.0, **prefixes: int) -> Any:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=1,
        kv_cache_usage=usage,
        prefix_cache_stats=SimpleNamespace(**{"queries": 0, "hits": 0, **prefixes}),
    )


def iteration(prompt: int = 0, generated: int = 0, **more: Any) -> Any:
    none: dict[str, Any] = {
        "num_preempted_reqs": 0,
        "time_to_first_tokens_iter": [],
        "inter_token_latencies_iter": [],
    }
    return SimpleNamespace(num_prompt_tokens=prompt, num_generation_tokens=generated, **{**none, **more})


def test_steps_are_added_up_and_counted_once() -> None:
    statistics = Statistics()
    assert statistics.take(idle=True) == EngineMetrics()
    assert statistics.take(idle=True) is None
    statistics.record(
        scheduler(2, 3, 0.5, queries=10, hits=4),
        iteration(10, 2, time_to_first_tokens_iter=[0.2, 0.3]),
        mm_cache_stats=None,
        engine_idx=0,
    )
    statistics.record(
        scheduler(1, 0, 0.25), iteration(0, 1, inter_token_latencies_iter=[0.02], num_preempted_reqs=1)
    )
    statistics.record(None, None)
    taken = statistics.take(idle=False)
    assert taken is not None
    assert (taken.running, taken.waiting, taken.kv_cache_usage) == (1, 1, 0.25)
    assert (taken.prompt_tokens, taken.generation_tokens, taken.preemptions) == (10, 3, 1)
    assert (taken.prefix_cache_queries, taken.prefix_cache_hits) == (10, 4)
    assert taken.time_to_first_token.sum == 0.5
    assert sum(taken.inter_token_latency.counts) == 1
    assert statistics.take(idle=False) is None


def test_an_engine_without_requests_has_an_empty_batch() -> None:
    """vLLM throttle no step after the last request was aborted."""
    statistics = Statistics()
    statistics.record(scheduler(1, 0, 0.5), iteration(3, 1))
    assert statistics.take(idle=False) is not None
    assert statistics.take(idle=True) == EngineMetrics()
    assert statistics.take(idle=True) is None


def test_the_scheduler_is_reported_when_its_requests_change() -> None:
    throttle = StatsThrottle()
    assert not throttle.is_due((0, 0, 0), 0, 0.1)
    assert throttle.is_due((1, 0, 0), 0, 0.2)
    assert not throttle.is_due((1, 0, 0), 0, 0.3)
    assert throttle.is_due((0, 0, 0), 0, 0.4)


def test_lookups_in_the_prefix_cache_are_reported_at_once() -> None:
    throttle = StatsThrottle()
    assert throttle.is_due((1, 0, 0), 10, 0.1)
    assert throttle.is_due((1, 0, 0), 12, 0.2)
    assert not throttle.is_due((1, 0, 0), 0, 0.3)


def test_the_use_of_the_kv_cache_is_reported_from_time_to_time() -> None:
    throttle = StatsThrottle()
    assert throttle.is_due((1, 0, 0), 0, 100.0)
    assert not throttle.is_due((1, 0, 0), 0, 100.0 + REPORT_INTERVAL / 2)
    assert throttle.is_due((1, 0, 0), 0, 100.0 + REPORT_INTERVAL)
    assert not throttle.is_due((1, 0, 0), 0, 100.0 + REPORT_INTERVAL * 1.5)
