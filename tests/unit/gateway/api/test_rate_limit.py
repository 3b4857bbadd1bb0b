"""Buckets that fill steadily and may be emptied at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway.api.rate_limit import RateLimits, RateLimitState


def test_a_burst_passes_then_requests_pass_as_the_bucket_fills() -> None:
    limits = RateLimits(requests=None, predictions=60)
    assert limits.take("t", creates=True, now=0.0) == RateLimitState(60, 59, 1, 0)
    for _ in range(59):
        standing = limits.take("t", creates=True, now=0.0)
        assert standing is not None
        assert standing.retry_after == 0
    assert limits.take("t", creates=True, now=0.0) == RateLimitState(60, 0, 60, 1)
    standing = limits.take("t", creates=True, now=1.0)
    assert standing is not None
    assert standing.retry_after == 0


def test_what_is_refused_takes_nothing() -> None:
    limits = RateLimits(requests=None, predictions=1)
    limits.take("t", creates=True, now=0.0)
    waits = [limits.take("t", creates=True, now=0.001 * n) for n in range(6)]
    assert [one.retry_after for one in waits if one] == [60] * 6
    standing = limits.take("t", creates=True, now=60.0)
    assert standing is not None
    assert standing.retry_after == 0


def test_tokens_and_kinds_do_not_share_and_none_is_no_limit() -> None:
    limits = RateLimits(requests=None, predictions=1)
    assert limits.take("t", creates=False, now=0.0) is None
    for token in ("a", "b"):
        standing = limits.take(token, creates=True, now=0.0)
        assert standing is not None
        assert standing.retry_after == 0


@given(st.integers(1, 1000), st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_never_more_than_the_limit_and_what_has_flowed_in(limit: int, gaps: list[float]) -> None:
    limits = RateLimits(requests=limit, predictions=None)
    now, passed = 0.0, 0
    for gap in gaps:
        now += gap
        standing = limits.take("t", creates=False, now=now)
        assert standing is not None
        assert 0 <= standing.remaining <= limit
        passed += standing.retry_after == 0
    assert passed <= limit + now * limit / 60 + 1e-6
