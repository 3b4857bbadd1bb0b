"""Deadlocks between predictions and their children: every prediction comes to an end."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.domain.errors import ShuttingDown, Throttled, Unauthenticated
from appliance.domain.prediction import Prediction, Status
from appliance.scheduler import (
    MIN_RESIDENCY,
    PATIENCE,
    Capacity,
    Decision,
    Demand,
    Load,
    Refuse,
    Residency,
    Scheduler,
    Start,
    Unload,
)
from tests.support.api_client import Api
from tests.support.engine_bench import Bench, entry

GIB = 1024**3


def model(name: str, gib: float = 4, **options: Any) -> Demand:
    return Demand(model=name, memory=int(gib * GIB), **{"concurrency": 2, **options})


def scheduler(*demands: Demand, gib: float = 10) -> Scheduler:
    return Scheduler([Capacity("gpu0", int(gib * GIB))], demands)


def running(subject: Scheduler, id: str, name: str, now: float = 0.0) -> None:
    """Load the model if need be, and start a prediction on it."""
    subject.queued(id, name, now)
    if Load in {type(decision) for decision in subject.decide(now)}:
        subject.loaded(name, now, ())
        assert Start(id, name, ("gpu0",)) in subject.decide(now)


def test_a_child_that_fits_beside_its_parent_is_loaded_and_runs() -> None:
    subject = scheduler(model("w/w"), model("p/p"))
    running(subject, "parent", "w/w")
    subject.queued("child", "p/p", 1.0, parent="parent")
    assert subject.decide(1.0) == [Load("p/p", ("gpu0",), 4 * GIB, may_sleep=False)]
    subject.loaded("p/p", 2.0, ())
    assert subject.decide(2.0) == [Start("child", "p/p", ("gpu0",), cold_start=1.0)]


def test_a_child_that_can_never_fit_beside_its_parent_is_refused_at_once_with_the_numbers() -> None:
    subject = scheduler(model("w/w", 6), model("p/p", 6))
    running(subject, "parent", "w/w")
    subject.queued("child", "p/p", 1.0, parent="parent")
    (refused,) = subject.decide(1.0)
    assert isinstance(refused, Refuse)
    assert refused.id == "child"
    for said in ("p/p", "w/w", "6.0 GiB", "4.0 GiB"):
        assert said in refused.reason
    assert subject.queue_length() == 0
    assert subject.decide(2.0) == []


def test_the_same_without_a_parent_waits_for_the_other_to_end() -> None:
    subject = scheduler(model("w/w", 6), model("p/p", 6))
    running(subject, "other", "w/w")
    subject.queued("one", "p/p", 1.0)
    assert subject.decide(1.0 + PATIENCE) == []
    assert subject.residency("w/w") is Residency.DRAINING


def test_a_parent_is_not_drained_for_its_own_child_but_another_model_is() -> None:
    subject = scheduler(model("w/w", 4), model("x/x", 4), model("p/p", 4))
    running(subject, "parent", "w/w")
    running(subject, "other", "x/x")
    subject.queued("child", "p/p", 1.0, parent="parent")
    subject.decide(1.0 + PATIENCE + MIN_RESIDENCY)
    assert subject.residency("w/w") is Residency.READY
    assert subject.residency("x/x") is Residency.DRAINING


def test_a_child_goes_before_what_waits_already_and_children_keep_their_order() -> None:
    subject = scheduler(model("w/w", 1), model("p/p", 1, concurrency=1))
    running(subject, "parent", "w/w")
    running(subject, "first", "p/p")
    for id, parent in (("a", None), ("child-1", "parent"), ("b", None), ("child-2", "parent")):
        subject.queued(id, "p/p", 1.0, parent=parent)
    order: list[str] = []
    for _ in range(4):
        subject.finished(["first", *order][-1], "p/p", 2.0)
        (started,) = subject.decide(2.0)
        assert isinstance(started, Start)
        order.append(started.id)
    assert order == ["child-1", "child-2", "a", "b"]


def test_a_prediction_that_asks_for_itself_is_refused_when_it_has_the_only_slot() -> None:
    subject = scheduler(model("w/w", concurrency=1))
    running(subject, "parent", "w/w")
    subject.queued("child", "w/w", 1.0, parent="parent")
    (refused,) = subject.decide(1.0)
    assert isinstance(refused, Refuse)
    assert "concurrency 1" in refused.reason


def test_two_parents_that_hold_what_the_other_needs_are_separated_by_refusing_one_child() -> None:
    subject = scheduler(model("v/v", 4), model("w/w", 4), model("p/p", 4), model("q/q", 4))
    running(subject, "one", "v/v")
    running(subject, "two", "w/w")
    subject.queued("child-of-one", "p/p", 1.0, parent="one")
    subject.queued("child-of-two", "q/q", 2.0, parent="two")
    # Of the first one alone it could be thought that the other ends; so it waits.
    (refused,) = subject.decide(2.0)
    assert isinstance(refused, Refuse)
    assert refused.id == "child-of-two"
    subject.finished("two", "w/w", 3.0)
    assert subject.decide(3.0 + MIN_RESIDENCY) == [Unload("w/w", "memory is needed for p/p", ("gpu0",), 0)]


def test_a_child_takes_the_memory_that_is_promised_to_one_that_waits_for_its_parent() -> None:
    subject = scheduler(model("w/w", 4), model("y/y", 8), model("p/p", 2))
    running(subject, "parent", "w/w")
    subject.queued("other", "y/y", 1.0)
    late = 1.0 + PATIENCE + MIN_RESIDENCY
    assert subject.decide(late) == []
    assert subject.residency("w/w") is Residency.DRAINING  # for y/y, as nothing speaks against it
    subject.queued("child", "p/p", late, parent="parent")
    assert subject.decide(late) == [Load("p/p", ("gpu0",), 2 * GIB, may_sleep=False)]


def test_what_outlives_its_parent_waits_like_any_other() -> None:
    subject = scheduler(model("w/w", 6), model("v/v", 1), model("p/p", 6))
    running(subject, "busy", "w/w")
    running(subject, "parent", "v/v")
    subject.queued("left", "p/p", 1.0, parent="parent")
    subject.finished("parent", "v/v", 2.0)
    assert subject.decide(2.0) == []
    assert subject.queue_length("p/p") == 1


def test_while_all_else_is_held_back_children_still_begin() -> None:
    subject = scheduler(model("w/w"), model("p/p"))
    running(subject, "parent", "w/w")
    subject.queued("next", "w/w", 1.0)
    subject.queued("child", "p/p", 1.0, parent="parent")
    assert subject.decide(1.0, children_only=True) == [Load("p/p", ("gpu0",), 4 * GIB, may_sleep=False)]
    subject.loaded("p/p", 2.0, ())
    subject.queued("other", "p/p", 2.0)
    assert subject.decide(2.0, children_only=True) == [Start("child", "p/p", ("gpu0",), cold_start=1.0)]


class World:
    """Carries decisions out; every parent asks for children, one after the other, and waits for each."""

    def __init__(self, subject: Scheduler, seed: int, depth: int) -> None:
        self.subject = subject
        self.chance = random.Random(seed)
        self.names = sorted(subject._models)
        self.now = 0.0
        self.depth = depth
        self.left: dict[str, int] = {}  # how many children each still asks for
        self.parent: dict[str, str] = {}
        self.on: dict[str, str] = {}
        self.ended: set[str] = set()
        self.refused = 0
        self.events: list[tuple[float, str, str]] = []

    def ask(self, id: str, parent: str | None = None) -> None:
        level = id.count(".")
        self.left[id] = self.chance.randint(0, 2) if level < self.depth else 0
        self.on[id] = self.chance.choice(self.names)
        if parent is not None:
            self.parent[id] = parent
        self.subject.queued(id, self.on[id], self.now, parent=parent)

    def go_on(self, id: str) -> None:
        """It runs, or a child of it has ended."""
        if self.left[id]:
            self.left[id] -= 1
            self.ask(f"{id}.{self.left[id]}", id)
        else:
            self.later("finish", id)

    def later(self, what: str, subject: str) -> None:
        self.events.append((self.now + self.chance.uniform(0.1, 5), what, subject))

    def over(self, id: str) -> None:
        self.ended.add(id)
        if id in self.parent:
            self.go_on(self.parent[id])

    def carry_out(self, decision: Decision) -> None:
        match decision:
            case Start(id):
                self.go_on(id)
            case Load(name):
                self.later("load", name)
            case Unload(name):
                self.later("unload", name)
            case Refuse(id):
                self.refused += 1
                self.over(id)

    def step(self) -> None:
        for decision in self.subject.decide(self.now):
            self.carry_out(decision)
        wakeup = self.subject.next_wakeup(self.now)
        times = [at for at, _, _ in self.events] + ([wakeup] if wakeup is not None else [])
        self.now = max(self.now, min(times, default=self.now))
        due = sorted(event for event in self.events if event[0] <= self.now)
        self.events = [event for event in self.events if event[0] > self.now]
        for _, what, about in due:
            if what == "finish":
                self.subject.finished(about, self.on[about], self.now)
                self.over(about)
            elif what == "load":
                self.subject.loaded(about, self.now, ())
            else:
                self.subject.unloaded(about, self.now)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=6),
    slots=st.integers(1, 3),
    devices=st.integers(1, 2),
    parents=st.integers(1, 8),
    depth=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
# A model was promised the memory of a parent whose child waited for the memory of an idle model.
@example(sizes=[8, 3, 3, 3, 2, 5], slots=2, devices=1, parents=6, depth=1, seed=10786110)
def test_whatever_asks_for_whatever_all_of_it_ends(
    sizes: list[int], slots: int, devices: int, parents: int, depth: int, seed: int
) -> None:
    demands = [model(f"m/{number}", size, concurrency=slots) for number, size in enumerate(sizes)]
    subject = Scheduler([Capacity(f"gpu{n}", 10 * GIB) for n in range(devices)], demands)
    world = World(subject, seed, depth)
    for number in range(parents):
        world.ask(f"w{number}")
    for _ in range(3000):
        world.step()
        if len(world.ended) == len(world.on):
            break
    assert len(world.ended) == len(world.on)
    assert not subject._children


@pytest.mark.parametrize("seed", range(5))
def test_where_there_is_memory_for_all_nothing_is_refused(seed: int) -> None:
    demands = [model(f"m/{number}", 1, concurrency=100) for number in range(4)]
    world = World(Scheduler([Capacity("gpu0", 4 * GIB)], demands), seed, 3)
    for number in range(8):
        world.ask(f"w{number}")
    for _ in range(3000):
        world.step()
    assert world.refused == 0
    assert len(world.ended) == len(world.on) > 8


async def parent_and_child(bench: Bench, **input: Any) -> tuple[Prediction, Prediction]:
    """A prediction that runs, and one that it asks for."""
    parent = await bench.until(await bench.submit(delay=30), Status.PROCESSING)
    return parent, await child_of(bench, parent, **input)


async def child_of(bench: Bench, parent: Prediction, **input: Any) -> Prediction:
    return await bench.engine.submit(
        bench.stream, input, owner="me", parent=parent.id, token=None, trace=None
    )


async def test_a_child_knows_its_parent_and_a_parent_its_children(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parent, child = await parent_and_child(bench, text="one")
    second = await child_of(bench, parent, text="two")
    other = await bench.submit(text="another")
    for prediction in (child, second, other):
        assert (await bench.ended(prediction)).status is Status.SUCCEEDED
    assert (child.parent, other.parent) == (parent.id, None)
    assert await bench.engine.children_of(parent) == [child.id, second.id]
    assert [found.id for found in await bench.engine.list("me", parent=parent.id)] == [second.id, child.id]
    assert f"{child.id} (child of {parent.id})" in caplog.text
    await bench.engine.cancel(parent.id, "me")


async def test_the_end_of_a_parent_is_the_end_of_its_children_unless_it_succeeds(bench: Bench) -> None:
    parent, child = await parent_and_child(bench, text="a b", chunk_delay=30)
    await bench.engine.cancel(parent.id, "me")
    assert (await bench.ended(child)).status is Status.CANCELED
    with pytest.raises(Unauthenticated):
        await child_of(bench, parent, text="too late")
    parent = await bench.until(await bench.submit(delay=0.3), Status.PROCESSING)
    child = await child_of(bench, parent, text="a b", chunk_delay=0.3)
    assert (await bench.ended(parent)).status is Status.SUCCEEDED
    assert (await bench.ended(child)).status is Status.SUCCEEDED


async def test_a_failed_child_leaves_its_parent_alone(bench: Bench) -> None:
    parent, child = await parent_and_child(bench, fail="no idea")
    assert (await bench.ended(child)).error == "no idea"
    assert (await bench.engine.get(parent.id, "me")).status is Status.PROCESSING
    await bench.engine.cancel(parent.id, "me")


async def test_a_parent_that_runs_again_has_no_children_of_before(bench: Bench) -> None:
    parent, child = await parent_and_child(bench, text="a b", chunk_delay=30)
    await bench.restart()
    assert (await bench.ended(child)).status is Status.CANCELED
    again = await bench.until(parent, Status.PROCESSING)
    assert again.attempt == 2
    assert bench.engine.running(parent.id, 1) is None
    assert bench.engine.running(parent.id, 2) is not None
    await bench.engine.cancel(parent.id, "me")


async def test_a_full_queue_keeps_no_child_out_but_a_parent_must_not_run_away(tmp_path: Any) -> None:
    bench = await Bench(tmp_path, queue_per_model=2).start()
    parent, *_ = [await bench.until(await bench.submit(delay=30), Status.PROCESSING) for _ in range(2)]
    for _ in range(2):
        await bench.submit(text="waits")
    with pytest.raises(Throttled):
        await bench.submit(text="one too many")
    children = [
        await bench.engine.submit(
            bench.echo, {"delay": 30}, owner="me", parent=parent.id, token=None, trace=None
        )
        for _ in range(2)
    ]
    with pytest.raises(Throttled, match="2 children"):
        await child_of(bench, parent, text="x")
    await bench.engine.cancel(parent.id, "me")
    for child in children:
        assert (await bench.ended(child)).status is Status.CANCELED
    await bench.stop()
    await bench.cluster.close()


async def test_a_child_that_cannot_get_its_memory_fails_with_the_numbers(tmp_path: Any) -> None:
    bench = Bench(tmp_path)
    large = entry("test/large")
    bench.more.append(large)
    await bench.start()
    parent = await bench.until(await bench.submit(delay=30), Status.PROCESSING)
    stuck = await bench.engine.submit(large, {}, owner="me", parent=parent.id, token=None, trace=None)
    record = await bench.ended(stuck)
    assert record.status is Status.FAILED
    assert record.error is not None
    assert "test/large" in record.error
    assert "test/echo" in record.error
    assert (await bench.engine.get(parent.id, "me")).status is Status.PROCESSING
    await bench.engine.cancel(parent.id, "me")
    await bench.stop()
    await bench.cluster.close()


async def test_draining_lets_a_parent_come_to_its_end(bench: Bench) -> None:
    parent = await bench.until(await bench.submit(delay=0.4), Status.PROCESSING)
    draining = asyncio.ensure_future(bench.engine.drain(10))
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await bench.submit(text="new")
    child = await child_of(bench, parent, text="needed")
    assert (await bench.ended(child)).status is Status.SUCCEEDED
    assert await draining == 0
    assert (await bench.ended(parent)).status is Status.SUCCEEDED


async def test_the_api_links_them_and_takes_the_token_while_it_runs(bench: Bench, api: Api) -> None:
    parent = await api.create(delay=30)
    record = await bench.until(await bench.engine.get(parent["id"], "me"), Status.PROCESSING)
    token = bench.run_tokens.make(record.id, record.attempt)
    signed = {"Authorization": f"Bearer {token}"}
    body = {"version": "test/stream", "input": {"text": "x"}}
    child = (await api.post("/v1/predictions", json=body, headers=signed)).json()
    assert child["parent"] == parent["id"]
    assert (await api.ended(child))["parent"] == parent["id"]
    shown = (await api.get(f"/v1/predictions/{parent['id']}")).json()
    assert shown["parts"] == [child["id"]]
    assert "parent" not in shown
    listed = (await api.get("/v1/predictions", params={"parent": parent["id"]})).json()["results"]
    assert [each["id"] for each in listed] == [child["id"]]
    assert (await api.get("/v1/predictions", params={"parent": "0" * 26})).status_code == 404
    assert (await api.post("/admin/models/test/echo/load", headers=signed)).status_code == 403
    assert token not in str([shown, listed, child])
    await api.post(f"/v1/predictions/{parent['id']}/cancel")
    assert (await api.post("/v1/predictions", json=body, headers=signed)).status_code == 401
