"""The measurements of inference engines, and their sums."""

from __future__ import annotations

import msgspec

from appliance.domain.engine_metrics import FIRST_TOKEN_BOUNDS, EngineMetrics, Histogram


def test_a_duration_on_a_bound_is_in_the_bucket_of_that_bound() -> None:
    durations = Histogram.empty((0.1, 1.0))
    durations.observe([0.1, 0.11, 1.0, 7.0], (0.1, 1.0))
    assert durations.counts == [1, 2, 1]
    assert durations.sum == 0.1 + 0.11 + 1.0 + 7.0


def test_sums_have_the_latest_state_and_all_counts() -> None:
    total = EngineMetrics(running=3, waiting=1, kv_cache_usage=0.5, prompt_tokens=7, preemptions=1)
    later = EngineMetrics(running=1, kv_cache_usage=0.25, prompt_tokens=2, prefix_cache_hits=4)
    later.time_to_first_token.observe([0.3], FIRST_TOKEN_BOUNDS)
    total.add(later)
    total.add(later)
    assert (total.running, total.waiting, total.kv_cache_usage) == (1, 0, 0.25)
    assert (total.prompt_tokens, total.preemptions, total.prefix_cache_hits) == (11, 1, 8)
    assert (sum(total.time_to_first_token.counts), total.time_to_first_token.sum) == (2, 0.6)
    assert total.state() == EngineMetrics(running=1, kv_cache_usage=0.25)


def test_a_message_is_small() -> None:
    assert len(msgspec.msgpack.encode(EngineMetrics())) < 200  # one is sent every second
    sent = msgspec.msgpack.encode(EngineMetrics(running=2, generation_tokens=5))
    assert msgspec.msgpack.decode(sent, type=EngineMetrics) == EngineMetrics(running=2, generation_tokens=5)
