"""What is said of the scheduler's decisions."""

from __future__ import annotations

from datetime import datetime

import pytest

from appliance.gateway.engine import report
from appliance.scheduler import Capacity, Demand, Load, Scheduler

GIB = 1024**3
STARTED = 1_700_000_000.0  # by the clock on the wall, when the scheduler's was at 0


class Clocks:
    """Both clocks of a machine; its processor is taken away for a second before every fourth reading."""

    def __init__(self) -> None:
        self.passed = 100.0
        self._looks = 0

    def monotonic(self) -> float:
        self._looks += 1
        self.passed += 1.0 if self._looks % 4 == 0 else 0.000_01
        return self.passed

    def time(self) -> float:
        return STARTED + self.monotonic()


def test_a_decision_has_the_same_time_whenever_it_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Scheduler([Capacity("gpu0", 10 * GIB)], [Demand(model="a/a", memory=GIB, concurrency=1)])
    subject.request_load("a/a")
    assert subject.decide(42.0) == [Load("a/a", ("gpu0",), GIB, may_sleep=False)]
    monkeypatch.setattr(report, "time", Clocks())
    status = report.status(subject, (), draining=False)
    for made in (report.residency(subject), status, report.residency(subject)):
        (decision,) = made.decisions
        assert datetime.fromisoformat(decision.at).timestamp() == pytest.approx(STARTED + 42, abs=0.001)
