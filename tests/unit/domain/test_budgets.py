"""Budgets count what the usage table counts, to the unit, and name the limit that is reached."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain import usage
from appliance.domain.access import Group, Policy
from appliance.domain.budget_rules import Budget, of_account, of_prediction, replacements
from appliance.domain.budgets import Budgets
from appliance.domain.errors import BudgetSpent, Throttled
from appliance.domain.prediction import Prediction, Status

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
DAY = 86400.0


def made(number: int = 0, owner: str = "anna", at: float = NOON, **changes: object) -> Prediction:
    return Prediction(
        id=f"p{number}",
        model="test/echo",
        version="v",
        owner=owner,
        input={},
        created_at=at,
        stream_token="s",
    ).evolve(**changes)


def ended(record: Prediction, at: float = NOON, seconds: float = 0.0, tokens: int = 0) -> Prediction:
    metrics = {"predict_time": seconds, "output_token_count": tokens}
    return record.evolve(status=Status.SUCCEEDED, completed_at=at, hardware="cpu", metrics=metrics)


def check(budgets: Budgets, record: Prediction, at: float = NOON) -> None:
    budgets.check(record.owner, record.token, record.model, child=record.parent is not None, now=at)


def test_without_budgets_everything_is_permitted() -> None:
    budgets = Budgets()
    for number in range(3):
        check(budgets, made(number))
        budgets.add(made(number))
    assert not budgets
    assert budgets.warnings("anna", None, "test/echo", NOON) == []


def test_predictions_are_counted_while_they_are_unfinished_and_after_their_end() -> None:
    budgets = Budgets([Budget(account="*", predictions=2)])
    budgets.add(made(1))
    check(budgets, made(2))
    budgets.add(made(2))
    budgets.count(ended(made(1)))
    with pytest.raises(Throttled, match="2 of 2 predictions of this day") as refused:
        check(budgets, made(3))
    assert 'account "anna"' in refused.value.detail
    assert "resets at 2026-12-01 00:00 UTC" in refused.value.detail
    assert refused.value.retry_after == DAY / 2
    check(budgets, made(4, owner="ben"))


def test_a_prediction_that_could_not_be_stored_is_not_counted() -> None:
    budgets = Budgets([Budget(account="anna", predictions=1, concurrent=1)])
    budgets.add(made(1))
    budgets.remove("p1")
    check(budgets, made(2))


def test_seconds_tokens_and_cost_are_refused_with_402_once_they_are_used() -> None:
    for limits, unit in (
        (Budget(account="*", seconds=5), "seconds"),
        (Budget(account="*", tokens=70), "tokens"),
        (Budget(account="*", cost=0.05), "EUR"),
    ):
        budgets = Budgets([limits], Policy(), {"cpu": 0.01}, "EUR")
        budgets.count(ended(made(1), seconds=4.999999, tokens=69))
        check(budgets, made(2))
        budgets.count(ended(made(2), seconds=0.000001, tokens=1))
        with pytest.raises(BudgetSpent, match=f"{unit} of this day"):
            check(budgets, made(3))


def test_unfinished_predictions_have_a_limit_of_their_own_that_leaves_out_children() -> None:
    budgets = Budgets([Budget(account="anna", concurrent=1)])
    budgets.add(made(1))
    child = made(2, parent="p1")
    check(budgets, child)
    budgets.add(child)
    with pytest.raises(Throttled, match="1 of 1") as refused:
        check(budgets, made(3))
    assert refused.value.retry_after == 1
    budgets.count(ended(made(1)))
    check(budgets, made(3))


def test_children_count_for_the_budgets_of_a_period() -> None:
    budgets = Budgets([Budget(account="anna", predictions=2)])
    budgets.add(made(1))
    budgets.add(made(2, parent="p1"))
    with pytest.raises(Throttled):
        check(budgets, made(3, parent="p1"))


def test_a_new_day_or_month_begins_with_what_is_unfinished() -> None:
    budgets = Budgets(
        [Budget(account="anna", predictions=2), Budget(account="ben", period="month", seconds=5)]
    )
    budgets.add(made(1))
    budgets.count(ended(made(2)))
    budgets.count(ended(made(3, owner="ben"), seconds=9))
    with pytest.raises(Throttled):
        check(budgets, made(4))
    with pytest.raises(BudgetSpent, match="resets at 2026-12-01 00:00 UTC"):
        check(budgets, made(4, owner="ben"))
    check(budgets, made(4), NOON + DAY)  # of yesterday, one is unfinished
    check(budgets, made(4, owner="ben"), NOON + DAY)  # a new month
    budgets.add(made(4))
    with pytest.raises(Throttled):
        check(budgets, made(5), NOON + DAY)


def test_a_month_keeps_its_earlier_days() -> None:
    budgets = Budgets([Budget(account="anna", period="month", predictions=2)])
    yesterday = NOON - DAY
    budgets.count(ended(made(1), yesterday))
    check(budgets, made(2), NOON)
    budgets.count(ended(made(2)))
    with pytest.raises(Throttled, match="2 of 2 predictions of this month"):
        check(budgets, made(3))


def test_a_group_shares_its_budget_and_a_model_is_limited_for_everybody() -> None:
    group = Group("vision", frozenset({"anna", "ben"}), ("*",), frozenset())
    budgets = Budgets(
        [Budget(group="vision", predictions=2), Budget(model="test/*", predictions=3)], Policy([group])
    )
    budgets.add(made(1))
    budgets.add(made(2, owner="ben"))
    with pytest.raises(Throttled, match='group "vision"'):
        check(budgets, made(3, owner="ben"))
    check(budgets, made(3, owner="carol"))
    budgets.add(made(3, owner="carol"))
    with pytest.raises(Throttled, match='model "test/echo"'):
        check(budgets, made(4, owner="carol"))
    check(budgets, made(4, owner="carol", model="other/model"))


def test_tokens_have_budgets_and_several_keys_must_all_match() -> None:
    budgets = Budgets(
        [Budget(token="*", predictions=1), Budget(account="anna", model="test/slow", predictions=0)]
    )
    budgets.add(made(1, token="t1"))
    with pytest.raises(Throttled, match='token "t1"'):
        check(budgets, made(2, token="t1"))
    check(budgets, made(2, token="t2"))
    check(budgets, made(2))  # no token
    with pytest.raises(Throttled, match='account "anna", model "test/slow"'):
        check(budgets, made(2, token="t2", model="test/slow"))


def test_a_budget_with_a_name_takes_the_place_of_the_one_for_all() -> None:
    budgets = Budgets([Budget(account="*", predictions=0), Budget(account="anna")])
    check(budgets, made(1))
    with pytest.raises(Throttled):
        check(budgets, made(1, owner="ben"))


def test_warnings_begin_at_their_share() -> None:
    budgets = Budgets([Budget(account="anna", predictions=4, concurrent=4, warn_at=0.5)])
    budgets.add(made(1))
    assert budgets.warnings("anna", None, "test/echo", NOON) == []
    budgets.add(made(2))
    (warning,) = budgets.warnings("anna", None, "test/echo", NOON)
    assert warning == (
        'account "anna": 2 of 4 predictions of this day are used; resets at 2026-12-01 00:00 UTC'
    )


def test_names_in_a_header_are_ascii_without_line_breaks() -> None:
    policy = Policy([Group("grün\n", frozenset({"anna"}), ("*",), frozenset())])
    budgets = Budgets([Budget(group="grün\n", predictions=1)], policy)
    budgets.add(made(1))
    (warning,) = budgets.warnings("anna", None, "test/echo", NOON)
    assert warning.isascii()
    assert warning.isprintable()


def test_new_budgets_know_what_was_counted_before() -> None:
    budgets = Budgets()
    budgets.add(made(1))
    budgets.count(ended(made(2), seconds=3))
    budgets.configure([Budget(account="anna", predictions=2)], Policy(), {}, "EUR")
    with pytest.raises(Throttled):
        check(budgets, made(3))
    budgets.configure([Budget(account="anna", seconds=3)], Policy(), {}, "EUR")
    with pytest.raises(BudgetSpent):
        check(budgets, made(3))


def test_a_report_is_of_the_account_and_its_token() -> None:
    group = Group("vision", frozenset({"ben"}), ("*",), frozenset())
    budgets = Budgets(
        [
            Budget(account="*", predictions=10, warn_at=0.1),
            Budget(group="vision", concurrent=0),
            Budget(token="*", predictions=5),
            Budget(model="test/echo", seconds=7),
        ],
        Policy([group]),
    )
    budgets.add(made(1, token="t1"))
    budgets.add(made(2, owner="ben", token="t2"))
    found = budgets.reports("anna", "t1", NOON)
    assert [str(each.subject) for each in found] == ['account "anna"', 'token "t1"', 'model "test/echo"']
    (amount,) = found[0].amounts
    assert (amount.name, amount.used, amount.limit, amount.state) == ("predictions", 1, 10, "warning")
    assert found[0].resets_at == NOON + DAY / 2
    assert {str(each.subject) for each in budgets.reports(None, None, NOON)} > {
        'group "vision"',
        'token "t2"',
    }


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.floats(0, 3), st.integers(0, 5), st.booleans()), max_size=40
    ),
    st.integers(0, 12),
)
def test_counts_equal_those_after_a_restart(runs: list[tuple[str, float, int, bool]], limit: int) -> None:
    rules = [Budget(account="*", predictions=limit), Budget(model="test/echo", seconds=20, tokens=50)]
    running = Budgets(rules)
    rows: list[usage.Usage] = []
    unfinished: list[Prediction] = []
    for number, (owner, seconds, tokens, ends) in enumerate(runs):
        record = made(number, owner=owner)
        try:
            check(running, record)
        except (Throttled, BudgetSpent):
            continue
        running.add(record)
        if ends:
            stored = ended(record, seconds=seconds, tokens=tokens)
            running.count(stored)
            rows.append(usage.of(stored))
        else:
            unfinished.append(record)
    restarted = Budgets(rules)
    restarted.restore(rows, NOON)
    for record in unfinished:
        restarted.add(record)
    for owner, *_ in runs:  # a report also has the accounts that were refused everything
        restarted.warnings(owner, None, "test/echo", NOON)
    assert restarted.reports(None, None, NOON) == running.reports(None, None, NOON)
    for owner in "ab":
        counted = [row.owner for row in rows] + [record.owner for record in unfinished]
        assert counted.count(owner) <= limit


def shown(budgets: Budgets, at: float = NOON) -> dict[str, float]:
    """Return the used amounts of all budgets by what they count for."""
    return {
        str(each.subject): amount.used for each in budgets.reports(None, None, at) for amount in each.amounts
    }


def test_an_account_that_joins_a_group_brings_its_counts() -> None:
    policy = Policy([Group("vision", frozenset({"ben"}), ("*",), frozenset())])
    budgets = Budgets([Budget(group="vision", predictions=3)], policy)
    budgets.add(made(1))
    budgets.add(made(2, owner="ben"))
    budgets.count(ended(made(3)))
    assert shown(budgets) == {'group "vision"': 1}
    budgets.groups_changed(policy.set_provider_groups("anna", frozenset({"vision"})))
    with pytest.raises(Throttled, match="3 of 3"):
        check(budgets, made(4))
    budgets.remove("p1")
    assert shown(budgets) == {'group "vision"': 2}
    budgets.groups_changed(policy.set_provider_groups("anna", frozenset()))
    assert shown(budgets) == {'group "vision"': 1}
    assert policy.set_provider_groups("anna", frozenset()) == frozenset()


def test_a_prediction_leaves_the_counters_that_it_was_added_to() -> None:
    policy = Policy([Group("vision", frozenset(), ("*",), frozenset())])
    budgets = Budgets([Budget(group="vision", concurrent=9)], policy)
    policy.set_provider_groups("anna", frozenset({"vision"}))
    budgets.add(made(1))
    policy.set_provider_groups("anna", frozenset())
    for number in range(25_000):  # more than are cached
        budgets.warnings("anna", None, f"test/m{number}", NOON)
    budgets.remove("p1")
    assert shown(budgets) == {'group "vision"': 0}


def test_the_usage_of_an_erased_account_counts_without_its_name() -> None:
    rules = [
        Budget(account="*", predictions=9),
        Budget(token="*", predictions=9),
        Budget(model="test/*", predictions=9, period="month"),
    ]
    budgets = Budgets(rules)
    budgets.count(ended(made(1, token="t1"), seconds=2))
    budgets.count(ended(made(2, owner="ben", token="t2")))
    budgets.erase_account("anna")
    expected = {'account "ben"': 1, 'token "t2"': 1, 'model "test/echo"': 2}
    assert shown(budgets) == expected
    restarted = Budgets(rules)
    rows = [usage.of(ended(made(1, owner="", token=""))), usage.of(ended(made(2, owner="ben", token="t2")))]
    restarted.restore(rows, NOON)
    assert shown(restarted) == expected


def test_a_clock_that_is_set_forward_and_back_loses_no_counts() -> None:
    budgets = Budgets(
        [Budget(account="*", predictions=3), Budget(account="*", period="month", predictions=4, seconds=60)]
    )
    budgets.count(ended(made(1), NOON - DAY, seconds=1))
    budgets.count(ended(made(2), NOON, seconds=2))
    for later in (1, 40):
        budgets.count(ended(made(3), NOON + later * DAY, seconds=4))
        assert [[each.used for each in report.amounts] for report in budgets.reports(None, None, NOON)] == [
            [1],
            [3, 2],
        ]
    budgets.count(ended(made(4), NOON, seconds=8))
    budgets.count(ended(made(5), NOON, seconds=16))
    with pytest.raises(Throttled, match="3 of 3 predictions of this day"):
        check(budgets, made(6))


ACCOUNTS, TOKENS, MODELS = ("anna", "ben"), ("", "t1", "t2", "other"), ("o/a", "o/b", "o/other", "p/x")


@st.composite
def rules(draw: st.DrawFn) -> list[Budget]:
    one = st.builds(
        Budget,
        account=st.sampled_from([None, "*", *ACCOUNTS]),
        group=st.sampled_from([None, None, "vision", "other"]),
        token=st.sampled_from([None, "*", "t1", "t2"]),
        model=st.sampled_from([None, "*", "o/*", "o/a", "o/b"]),
    )
    return draw(st.lists(one, max_size=6))


@given(rules())
def test_the_budgets_of_an_account_are_those_that_count_one_of_its_predictions(budgets: list[Budget]) -> None:
    policy = Policy([Group("vision", frozenset({"anna"}), ("*",), frozenset())])
    numbered, replaced_by = list(enumerate(budgets)), replacements(budgets)
    for account in ACCOUNTS:
        groups = frozenset(group.name for group in policy.groups_of(account))
        counting = {
            number
            for token in TOKENS
            for model in MODELS
            for number, _, _ in of_prediction(numbered, replaced_by, groups, account, token, model)
        }
        expected = [budget for number, budget in numbered if number in counting]
        assert of_account(budgets, policy, account) == expected


def test_budgets_of_different_models_do_not_replace_each_other() -> None:
    budgets = [Budget(model="o/a", predictions=1), Budget(model="o/b", predictions=2)]
    assert of_account(budgets, Policy(), "anna") == budgets
    assert not any(one.replaces(other) for one in budgets for other in budgets)
    assert budgets[0].replaces(Budget(model="o/*"))
    assert not budgets[0].replaces(Budget(model="p/*"))
