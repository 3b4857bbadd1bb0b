"""The queue of a model: fair between accounts, in order for one account, and without starvation."""

from __future__ import annotations

from collections import Counter, deque

from hypothesis import given
from hypothesis import strategies as st

from appliance.scheduler import Capacity, Demand, Owner, Scheduler
from appliance.scheduler.fair_queue import FairQueue


def drained(queue: FairQueue) -> list[str]:
    order = []
    while queue:
        order.append(queue.first)
        queue.start(queue.first)
    return order


def fill(queue: FairQueue, account: str, count: int, priority: int = 0) -> None:
    for number in range(count):
        queue.add(f"{account}{number}", account, priority)


def test_one_account_is_served_in_order() -> None:
    queue = FairQueue()
    fill(queue, "a", 5)
    assert drained(queue) == ["a0", "a1", "a2", "a3", "a4"]


def test_accounts_take_turns_whoever_has_queued_more() -> None:
    queue = FairQueue()
    fill(queue, "a", 4)
    fill(queue, "b", 2)
    assert drained(queue) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_an_account_that_comes_later_is_next_but_gets_nothing_for_the_time_before() -> None:
    queue = FairQueue()
    fill(queue, "a", 10)
    for _ in range(4):
        queue.start(queue.first)
    fill(queue, "b", 3)
    assert drained(queue)[:6] == ["a4", "b0", "a5", "b1", "a6", "b2"]


def test_each_step_of_priority_doubles_the_share() -> None:
    queue = FairQueue()
    fill(queue, "low", 40)
    fill(queue, "high", 40, priority=2)
    first = Counter(id.rstrip("0123456789") for id in drained(queue)[:30])
    assert first == {"high": 24, "low": 6}


def test_canceled_predictions_leave_no_debt() -> None:
    queue = FairQueue()
    fill(queue, "b", 3)
    fill(queue, "a", 50)
    for number in range(50):
        queue.remove(f"a{number}")
    queue.add("a", "a", 0)
    assert drained(queue) == ["b0", "a", "b1", "b2"]


def test_a_prediction_that_runs_again_is_first() -> None:
    queue = FairQueue()
    fill(queue, "a", 2)
    queue.insert(0, "again")
    queue.add("b", "b", 5)
    assert drained(queue) == ["again", "b", "a0", "a1"]


def test_nobody_starves_beside_an_account_of_the_highest_priority() -> None:
    queue = FairQueue()
    fill(queue, "high", 1, priority=5)
    queue.add("low", "low", -5)
    starts = 0
    while queue.first != "low":
        queue.start(queue.first)
        starts += 1
        queue.add(f"more{starts}", "high", 5)
        assert starts <= 32 * 32 + 1


OWNERS = {"a": 0, "b": 0, "c": 1, "d": -1}


@given(st.lists(st.sampled_from([*OWNERS, "start", "remove"]), max_size=80))
def test_nothing_is_lost_and_each_account_keeps_its_order(steps: list[str]) -> None:
    queue = FairQueue()
    expected: dict[str, deque[str]] = {account: deque() for account in OWNERS}
    for number, step in enumerate(steps):
        if step in OWNERS:
            queue.add(f"{step}{number}", step, OWNERS[step])
            expected[step].append(f"{step}{number}")
        elif queue and step == "start":
            id = queue.first
            queue.start(id)
            assert expected[id[0]].popleft() == id
        elif queue:
            id = list(queue)[-1]
            queue.remove(id)
            assert expected[id[0]].pop() == id
        assert sorted(queue) == sorted(id for ids in expected.values() for id in ids)
        assert [queue.index(id) for id in queue] == list(range(len(queue)))


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
    st.integers(1, 60),
)
def test_accounts_that_wait_differ_by_at_most_one_start(arrivals: list[str], starts: int) -> None:
    queue = FairQueue()
    for number, account in enumerate(arrivals):
        queue.add(f"{account}{number}", account, 0)
    waiting = Counter(arrivals)
    started: Counter[str] = Counter()
    for _ in range(min(starts, len(arrivals))):
        account = queue.first[0]
        queue.start(queue.first)
        started[account] += 1
        waiting[account] -= 1
        backlogged = [started[each] for each in waiting if waiting[each]]
        assert all(started[account] - other <= 1 for other in backlogged)


def test_the_scheduler_starts_predictions_of_accounts_in_turn() -> None:
    scheduler = Scheduler([Capacity("gpu0", 10)], [Demand(model="a/a", concurrency=1, memory=5)])
    for number in range(3):
        scheduler.queued(f"bulk{number}", "a/a", 0.0, owner=Owner("bulk"))
    scheduler.queued("other", "a/a", 0.0, owner=Owner("other"))
    scheduler.queued("urgent", "a/a", 0.0, owner=Owner("urgent", 3))
    assert scheduler.queue_position("urgent") == 1
    scheduler.queued("child", "a/a", 0.0, parent="p", owner=Owner("bulk"))
    scheduler.decide(0.0)
    scheduler.loaded("a/a", 1.0, ())
    order = []
    for now in range(6):
        (start,) = scheduler.start_queued("a/a", float(now))
        order.append(start.id)
        scheduler.finished(start.id, "a/a", float(now))
    assert order == ["child", "urgent", "bulk0", "other", "bulk1", "bulk2"]


def test_canceled_predictions_of_an_account_do_not_delay_its_other_ones() -> None:
    queue = FairQueue()
    fill(queue, "a", 50)
    fill(queue, "b", 4)
    for number in range(1, 50):
        queue.remove(f"a{number}")
    queue.add("next", "a", 0)
    assert drained(queue) == ["a0", "b0", "b1", "next", "b2", "b3"]


def test_predictions_that_run_again_keep_their_positions_before_all_others() -> None:
    queue = FairQueue()
    fill(queue, "a", 2)
    queue.insert(0, "again")
    queue.insert(1, "child")
    queue.insert(0, "first")
    assert list(queue) == ["first", "again", "child", "a0", "a1"]
    assert [queue.index(id) for id in queue] == [0, 1, 2, 3, 4]
    queue.remove("again")
    assert drained(queue) == ["first", "child", "a0", "a1"]
