"""Budgets in the engine: predictions are counted from their admission to their stored end, and after it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.domain.access import Group, Policy
from appliance.domain.budget_rules import Budget
from appliance.domain.errors import BudgetSpent, StoreError, Throttled
from appliance.domain.prediction import Prediction, Status
from appliance.gateway.engine.active import ActivePrediction
from tests.support.engine_bench import Bench, entry, refusal


def limit(bench: Bench, *budgets: Budget) -> None:
    bench.engine.budgets.configure(budgets, Policy(), {"cpu": 1.0}, "EUR")


async def test_exactly_the_budget_is_accepted_of_many_at_once(bench: Bench) -> None:
    limit(bench, Budget(account="me", predictions=5))
    asked = [bench.submit(text=str(number), delay=0.01 * (number % 3)) for number in range(40)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    accepted = [each for each in results if not isinstance(each, BaseException)]
    assert len(accepted) == 5
    assert all(isinstance(each, Throttled) for each in results if isinstance(each, BaseException))
    for each in accepted:
        await bench.ended(each)
    with pytest.raises(Throttled):
        await bench.submit(text="x")


async def test_the_counts_survive_a_restart(bench: Bench) -> None:
    budget = Budget(account="me", predictions=3)
    limit(bench, budget)
    await bench.ended(await bench.submit(text="x"))
    await bench.submit(text="x", delay=30)
    await bench.restart()
    limit(bench, budget)
    await bench.submit(text="x")
    with pytest.raises(Throttled, match="3 of 3"):
        await bench.submit(text="x")


async def test_a_slot_is_free_once_the_end_is_shown(bench: Bench) -> None:
    limit(bench, Budget(model="test/echo", concurrent=1))
    first = await bench.submit(delay=30)
    with pytest.raises(Throttled):
        await bench.submit(text="x")
    await bench.engine.cancel(first.id, "me")
    await bench.ended(await bench.submit(text="x"))


async def test_a_prediction_that_is_not_stored_is_not_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(bench, Budget(account="me", predictions=1))
    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "create", lambda _: refusal(StoreError("full")))
        with pytest.raises(StoreError):
            await bench.submit(text="x")
    await bench.ended(await bench.submit(text="x"))
    with pytest.raises(Throttled):
        await bench.submit(text="x")


async def test_seconds_are_spent_by_the_runs_that_have_ended(bench: Bench) -> None:
    limit(bench, Budget(account="me", seconds=1e-6), Budget(account="me", cost=1e-6))
    await bench.ended(await bench.submit(text="x", delay=0.01))
    with pytest.raises(BudgetSpent, match=r"seconds|EUR"):
        await bench.submit(text="x")


async def test_a_model_may_have_a_run_timeout_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, run_timeout=60)
    short = entry("test/short")
    short.model.__dict__["run_timeout"] = 0.1
    bench.more.append(short)
    await bench.start()
    record = await bench.ended(await bench.submit(short, delay=30))
    assert record.status is Status.FAILED
    assert "run_timeout of model test/short (0.1 s)" in (record.error or "")
    training = ActivePrediction(record.evolve(destination="test/trained"), short, {})
    assert training.run_timeout(bench.limits) == (60.0, "limits.run_timeout")
    await bench.stop()
    await bench.cluster.close()


async def test_accounts_take_turns_and_the_priority_of_a_group_counts(bench: Bench) -> None:
    bench.engine.limit(
        bench.limits, Policy([Group("urgent", frozenset({"vip"}), ("*",), frozenset(), priority=2)])
    )

    async def submit(owner: str) -> Prediction:
        return await bench.engine.submit(
            bench.echo, {"delay": 30}, owner=owner, parent=None, token=None, trace=None
        )

    for _ in range(2):  # they run
        await bench.until(await submit("me"), Status.PROCESSING)
    waiting = [await submit(owner) for owner in ("me", "me", "you", "vip")]
    positions = [bench.scheduler.queue_position(each.id) for each in waiting]
    assert positions == [2, 4, 3, 1]
