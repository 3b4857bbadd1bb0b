"""The shortest of all times that apply counts."""

from __future__ import annotations

import pytest

from appliance.domain.retention import RetentionRules

RULES = RetentionRules(100.0, {"a/*": 50.0, "a/b": 200.0, "c/d": 10.0}, {"ada": 20.0, "ben": 0.0})


@pytest.mark.parametrize(
    ("model", "account", "seconds"),
    [
        ("x/y", "eve", 100.0),
        ("a/b", "eve", 50.0),
        ("c/d", "eve", 10.0),
        ("a/b", "ada", 20.0),
        ("c/d", "ada", 10.0),
        ("c/d", "ben", 0.0),
    ],
)
def test_the_shortest_time_counts(model: str, account: str, seconds: float) -> None:
    assert RULES.seconds_for(model, account) == seconds


def test_without_a_time_that_applies_data_is_kept() -> None:
    rules = RetentionRules(None, {"a/*": 50.0}, {"ada": 20.0})
    assert rules.seconds_for("x/y", "eve") is None
    assert rules.times == [20.0, 50.0]
    assert RetentionRules().times == []
