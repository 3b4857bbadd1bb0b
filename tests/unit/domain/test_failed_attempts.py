"""How failed sign-ins from one address are slowed down."""

from __future__ import annotations

import pytest

from appliance.domain import failed_attempts
from appliance.domain.failed_attempts import MOST, WINDOW, FailedAttempts


def test_the_wait_ends_when_the_first_failure_is_old_enough() -> None:
    attempts = FailedAttempts()
    assert [attempts.record("192.0.2.1", float(at)) for at in range(MOST)] == [0] * MOST
    assert attempts.record("192.0.2.1", float(MOST)) == WINDOW - MOST
    assert attempts.record("192.0.2.1", WINDOW - 0.5) == 1
    assert attempts.record("192.0.2.1", WINDOW) == 0


def test_asking_for_the_wait_counts_nothing() -> None:
    attempts = FailedAttempts(2, 60.0)
    assert attempts.retry_after("anna", 0.0) == 0
    assert [attempts.record("anna", at) for at in (0.0, 10.0)] == [0, 0]
    assert [attempts.retry_after("anna", at) for at in (10.0, 20.0, 59.5, 60.0)] == [50, 40, 1, 0]
    assert attempts.retry_after("ben", 20.0) == 0
    attempts.record("anna", 60.0)
    assert attempts.retry_after("anna", 60.0) == 10
    attempts.withdraw("anna")
    assert attempts.retry_after("anna", 60.0) == 0
    attempts.record("anna", 60.0)
    attempts.forget("anna")
    assert attempts.retry_after("anna", 60.0) == 0


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_attempts, "_REMEMBERED", 3)
    attempts = FailedAttempts()
    for number in range(100):
        attempts.record(f"192.0.2.{number}", 0.0)
    assert len(attempts._failures) == 3
