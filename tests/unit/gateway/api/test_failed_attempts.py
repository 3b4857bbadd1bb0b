"""How failed sign-ins from one address are slowed down."""

from __future__ import annotations

import pytest

from appliance.gateway.api import failed_attempts
from appliance.gateway.api.failed_attempts import MOST, WINDOW, FailedAttempts


def test_the_wait_ends_when_the_first_failure_is_old_enough() -> None:
    attempts = FailedAttempts()
    assert [attempts.record("192.0.2.1", float(at)) for at in range(MOST)] == [0] * MOST
    assert attempts.record("192.0.2.1", float(MOST)) == WINDOW - MOST
    assert attempts.record("192.0.2.1", WINDOW - 0.5) == 1
    assert attempts.record("192.0.2.1", WINDOW) == 0


def test_an_ipv6_network_counts_as_one_address() -> None:
    attempts = FailedAttempts()
    waits = [attempts.record(f"2001:db8::{number:x}", 0.0) for number in range(MOST + 1)]
    assert waits == [0] * MOST + [WINDOW]
    assert attempts.record("2001:db8:0:1::1", 0.0) == 0


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_attempts, "_REMEMBERED", 3)
    attempts = FailedAttempts()
    for number in range(100):
        attempts.record(f"192.0.2.{number}", 0.0)
    assert len(attempts._failures) == 3
