"""The arithmetic of load tests."""

from __future__ import annotations

import pytest

from appliance.load_test.results import Collector, Percentiles, RequestTiming


def test_percentiles_are_values_that_were_measured() -> None:
    assert Percentiles.of([]) is None
    assert Percentiles.of([3.0]) == Percentiles(3.0, 3.0, 3.0)
    assert Percentiles.of([float(each) for each in range(100, 0, -1)]) == Percentiles(50.0, 90.0, 99.0)


def test_a_streaming_model_has_latencies_of_its_tokens() -> None:
    collector = Collector("test/stream", 2)
    collector.seconds = 2.0
    collector.add(RequestTiming(duration=1.0, outputs=[0.2, 0.3, 0.5], tokens=3))
    collector.add(RequestTiming(duration=1.5, outputs=[0.4], tokens=1))
    results = collector.results()
    assert (results.requests, results.succeeded, results.error_rate) == (2, 2, 0.0)
    assert (results.requests_per_second, results.output_tokens, results.tokens_per_second) == (1.0, 4, 2.0)
    assert results.time_to_first_token == Percentiles(0.2, 0.4, 0.4)
    assert results.inter_token_latency is not None
    assert results.inter_token_latency.p50 == pytest.approx(0.1)
    assert results.inter_token_latency.p99 == pytest.approx(0.2)


def test_a_model_with_one_output_has_no_latencies_of_tokens() -> None:
    collector = Collector("test/echo", 1)
    collector.add(RequestTiming(duration=1.0, outputs=[1.0], tokens=None))
    results = collector.results()
    assert (results.time_to_first_token, results.inter_token_latency) == (None, None)
    assert (results.output_tokens, results.tokens_per_second) == (None, None)


def test_errors_are_counted_by_message_and_their_number_is_bounded() -> None:
    collector = Collector("test/echo", 1)
    collector.add(RequestTiming(duration=1.0, outputs=[], tokens=None))
    for _ in range(3):
        collector.add_error("the queue\nis full")
    for number in range(100):
        collector.add_error(f"prediction {number} failed")
    results = collector.results()
    assert results.errors["the queue is full"] == 3
    assert (len(results.errors), sum(results.errors.values())) == (21, 103)
    assert results.error_rate == pytest.approx(103 / 104)
