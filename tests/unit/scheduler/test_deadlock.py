"""Deadlocks between predictions and their children: every prediction comes to an end."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest
from hypothesis import given, settings
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
        subject.loaded(name, now)
        assert Start(id, name) in subject.decide(now)


def test_a_part_that_fits_beside_its_whole_is_loaded_and_runs() -> None:
    subject = scheduler(model("w/w"), model("p/p"))
    running(subject, "whole", "w/w")
    subject.queued("part", "p/p", 1.0, parent="whole")
    assert subject.decide(1.0) == [Load("p/p", ("gpu0",), 4 * GIB)]
    subject.loaded("p/p", 2.0)
    assert subject.decide(2.0) == [Start("part", "p/p", cold_start=1.0)]


def test_a_part_that_can_never_fit_beside_its_whole_is_refused_at_once_with_the_numbers() -> None:
    subject = scheduler(model("w/w", 6), model("p/p", 6))
    running(subject, "whole", "w/w")
    subject.queued("part", "p/p", 1.0, parent="whole")
    (refused,) = subject.decide(1.0)
    assert isinstance(refused, Refuse)
    assert refused.id == "part"
    for said in ("p/p", "w/w", "6.0 GiB", "4.0 GiB"):
        assert said in refused.reason
    assert subject.queue_length() == 0
    assert subject.decide(2.0) == []


def test_the_same_without_a_whole_waits_for_the_other_to_end() -> None:
    subject = scheduler(model("w/w", 6), model("p/p", 6))
    running(subject, "other", "w/w")
    subject.queued("one", "p/p", 1.0)
    assert subject.decide(1.0 + PATIENCE) == []
    assert subject.residency("w/w") is Residency.DRAINING


def test_a_whole_is_not_drained_for_its_own_part_but_another_model_is() -> None:
    subject = scheduler(model("w/w", 4), model("x/x", 4), model("p/p", 4))
    running(subject, "whole", "w/w")
    running(subject, "other", "x/x")
    subject.queued("part", "p/p", 1.0, parent="whole")
    subject.decide(1.0 + PATIENCE + MIN_RESIDENCY)
    assert subject.residency("w/w") is Residency.READY
    assert subject.residency("x/x") is Residency.DRAINING


def test_a_part_goes_before_what_waits_already_and_parts_keep_their_order() -> None:
    subject = scheduler(model("w/w", 1), model("p/p", 1, concurrency=1))
    running(subject, "whole", "w/w")
    running(subject, "first", "p/p")
    for id, whole in (("a", None), ("part-1", "whole"), ("b", None), ("part-2", "whole")):
        subject.queued(id, "p/p", 1.0, parent=whole)
    order: list[str] = []
    for _ in range(4):
        subject.finished(["first", *order][-1], "p/p", 2.0)
        (started,) = subject.decide(2.0)
        assert isinstance(started, Start)
        order.append(started.id)
    assert order == ["part-1", "part-2", "a", "b"]


def test_a_prediction_that_asks_for_itself_is_refused_when_it_has_the_only_slot() -> None:
    subject = scheduler(model("w/w", concurrency=1))
    running(subject, "whole", "w/w")
    subject.queued("part", "w/w", 1.0, parent="whole")
    (refused,) = subject.decide(1.0)
    assert isinstance(refused, Refuse)
    assert "1 at a time" in refused.reason


def test_two_wholes_that_hold_what_the_other_needs_are_parted_by_refusing_one_part() -> None:
    subject = scheduler(model("v/v", 4), model("w/w", 4), model("p/p", 4), model("q/q", 4))
    running(subject, "one", "v/v")
    running(subject, "two", "w/w")
    subject.queued("part-of-one", "p/p", 1.0, parent="one")
    subject.queued("part-of-two", "q/q", 2.0, parent="two")
    # Of the first one alone it could be thought that the other ends; so it waits.
    (refused,) = subject.decide(2.0)
    assert isinstance(refused, Refuse)
    assert refused.id == "part-of-two"
    subject.finished("two", "w/w", 3.0)
    assert subject.decide(3.0 + MIN_RESIDENCY) == [Unload("w/w", "makes room for p/p")]


def test_a_part_takes_the_room_that_is_promised_to_one_that_waits_for_its_whole() -> None:
    subject = scheduler(model("w/w", 4), model("y/y", 8), model("p/p", 2))
    running(subject, "whole", "w/w")
    subject.queued("other", "y/y", 1.0)
    late = 1.0 + PATIENCE + MIN_RESIDENCY
    assert subject.decide(late) == []
    assert subject.residency("w/w") is Residency.DRAINING  # for y/y, as nothing speaks against it
    subject.queued("part", "p/p", late, parent="whole")
    assert subject.decide(late) == [Load("p/p", ("gpu0",), 2 * GIB)]


def test_what_outlives_its_whole_waits_like_any_other() -> None:
    subject = scheduler(model("w/w", 6), model("v/v", 1), model("p/p", 6))
    running(subject, "busy", "w/w")
    running(subject, "whole", "v/v")
    subject.queued("left", "p/p", 1.0, parent="whole")
    subject.finished("whole", "v/v", 2.0)
    assert subject.decide(2.0) == []
    assert subject.queue_length("p/p") == 1


def test_while_all_else_is_held_back_parts_still_begin() -> None:
    subject = scheduler(model("w/w"), model("p/p"))
    running(subject, "whole", "w/w")
    subject.queued("next", "w/w", 1.0)
    subject.queued("part", "p/p", 1.0, parent="whole")
    assert subject.decide(1.0, children_only=True) == [Load("p/p", ("gpu0",), 4 * GIB)]
    subject.loaded("p/p", 2.0)
    subject.queued("other", "p/p", 2.0)
    assert subject.decide(2.0, children_only=True) == [Start("part", "p/p", cold_start=1.0)]


class World:
    """Carries decisions out; every whole asks for parts, one after the other, and waits for each."""

    def __init__(self, subject: Scheduler, seed: int, depth: int) -> None:
        self.subject = subject
        self.chance = random.Random(seed)
        self.names = sorted(subject._models)
        self.now = 0.0
        self.depth = depth
        self.left: dict[str, int] = {}  # how many parts each still asks for
        self.whole: dict[str, str] = {}
        self.on: dict[str, str] = {}
        self.ended: set[str] = set()
        self.refused = 0
        self.events: list[tuple[float, str, str]] = []

    def ask(self, id: str, whole: str | None = None) -> None:
        level = id.count(".")
        self.left[id] = self.chance.randint(0, 2) if level < self.depth else 0
        self.on[id] = self.chance.choice(self.names)
        if whole is not None:
            self.whole[id] = whole
        self.subject.queued(id, self.on[id], self.now, parent=whole)

    def go_on(self, id: str) -> None:
        """It runs, or a part of it has ended."""
        if self.left[id]:
            self.left[id] -= 1
            self.ask(f"{id}.{self.left[id]}", id)
        else:
            self.later("finish", id)

    def later(self, what: str, subject: str) -> None:
        self.events.append((self.now + self.chance.uniform(0.1, 5), what, subject))

    def over(self, id: str) -> None:
        self.ended.add(id)
        if id in self.whole:
            self.go_on(self.whole[id])

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
                self.subject.loaded(about, self.now)
            else:
                self.subject.unloaded(about, self.now)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=6),
    slots=st.integers(1, 3),
    devices=st.integers(1, 2),
    wholes=st.integers(1, 8),
    depth=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_whatever_asks_for_whatever_all_of_it_ends(
    sizes: list[int], slots: int, devices: int, wholes: int, depth: int, seed: int
) -> None:
    demands = [model(f"m/{number}", size, concurrency=slots) for number, size in enumerate(sizes)]
    subject = Scheduler([Capacity(f"gpu{n}", 10 * GIB) for n in range(devices)], demands)
    world = World(subject, seed, depth)
    for number in range(wholes):
        world.ask(f"w{number}")
    for _ in range(3000):
        world.step()
        if len(world.ended) == len(world.on):
            break
    assert len(world.ended) == len(world.on)
    assert not subject._children


@pytest.mark.parametrize("seed", range(5))
def test_where_there_is_room_for_all_nothing_is_refused(seed: int) -> None:
    demands = [model(f"m/{number}", 1, concurrency=100) for number in range(4)]
    world = World(Scheduler([Capacity("gpu0", 4 * GIB)], demands), seed, 3)
    for number in range(8):
        world.ask(f"w{number}")
    for _ in range(3000):
        world.step()
    assert world.refused == 0
    assert len(world.ended) == len(world.on) > 8


async def whole_and_part(bench: Bench, **input: Any) -> tuple[Prediction, Prediction]:
    """A prediction that runs, and one that it asks for."""
    whole = await bench.until(await bench.submit(delay=30), Status.PROCESSING)
    return whole, await part_of(bench, whole, **input)


async def part_of(bench: Bench, whole: Prediction, **input: Any) -> Prediction:
    return await bench.engine.submit(bench.stream, input, owner="me", parent=whole.id)


async def test_a_part_knows_its_whole_and_a_whole_its_children(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole, part = await whole_and_part(bench, text="one")
    second = await part_of(bench, whole, text="two")
    other = await bench.submit(text="another")
    for prediction in (part, second, other):
        assert (await bench.ended(prediction)).status is Status.SUCCEEDED
    assert (part.parent, other.parent) == (whole.id, None)
    assert await bench.engine.children_of(whole) == [part.id, second.id]
    assert [found.id for found in await bench.engine.list("me", parent=whole.id)] == [second.id, part.id]
    assert f"{part.id} (child of {whole.id})" in caplog.text
    await bench.engine.cancel(whole.id, "me")


async def test_the_end_of_a_whole_is_the_end_of_its_parts_unless_it_succeeds(bench: Bench) -> None:
    whole, part = await whole_and_part(bench, text="a b", chunk_delay=30)
    await bench.engine.cancel(whole.id, "me")
    assert (await bench.ended(part)).status is Status.CANCELED
    with pytest.raises(Unauthenticated):
        await part_of(bench, whole, text="too late")
    whole = await bench.until(await bench.submit(delay=0.3), Status.PROCESSING)
    part = await part_of(bench, whole, text="a b", chunk_delay=0.3)
    assert (await bench.ended(whole)).status is Status.SUCCEEDED
    assert (await bench.ended(part)).status is Status.SUCCEEDED


async def test_a_failed_part_leaves_its_whole_alone(bench: Bench) -> None:
    whole, part = await whole_and_part(bench, fail="no idea")
    assert (await bench.ended(part)).error == "no idea"
    assert (await bench.engine.get(whole.id, "me")).status is Status.PROCESSING
    await bench.engine.cancel(whole.id, "me")


async def test_a_whole_that_runs_again_has_no_parts_of_before(bench: Bench) -> None:
    whole, part = await whole_and_part(bench, text="a b", chunk_delay=30)
    await bench.restart()
    assert (await bench.ended(part)).status is Status.CANCELED
    again = await bench.until(whole, Status.PROCESSING)
    assert again.attempt == 2
    assert bench.engine.running(whole.id, 1) is None
    assert bench.engine.running(whole.id, 2) is not None
    await bench.engine.cancel(whole.id, "me")


async def test_a_full_queue_keeps_no_part_out_but_a_whole_must_not_run_away(tmp_path: Any) -> None:
    bench = await Bench(tmp_path, queue_per_model=2).start()
    whole, *_ = [await bench.until(await bench.submit(delay=30), Status.PROCESSING) for _ in range(2)]
    for _ in range(2):
        await bench.submit(text="waits")
    with pytest.raises(Throttled):
        await bench.submit(text="one too many")
    parts = [
        await bench.engine.submit(bench.echo, {"delay": 30}, owner="me", parent=whole.id) for _ in range(2)
    ]
    with pytest.raises(Throttled, match="2 children"):
        await part_of(bench, whole, text="x")
    await bench.engine.cancel(whole.id, "me")
    for part in parts:
        assert (await bench.ended(part)).status is Status.CANCELED
    await bench.stop()
    await bench.cluster.close()


async def test_a_part_that_cannot_have_its_room_fails_with_the_numbers(tmp_path: Any) -> None:
    bench = Bench(tmp_path)
    large = entry("test/large")
    bench.more.append(large)
    await bench.start()
    whole = await bench.until(await bench.submit(delay=30), Status.PROCESSING)
    stuck = await bench.engine.submit(large, {}, owner="me", parent=whole.id)
    record = await bench.ended(stuck)
    assert record.status is Status.FAILED
    assert record.error is not None
    assert "test/large" in record.error
    assert "test/echo" in record.error
    assert (await bench.engine.get(whole.id, "me")).status is Status.PROCESSING
    await bench.engine.cancel(whole.id, "me")
    await bench.stop()
    await bench.cluster.close()


async def test_draining_lets_a_whole_come_to_its_end(bench: Bench) -> None:
    whole = await bench.until(await bench.submit(delay=0.4), Status.PROCESSING)
    draining = asyncio.ensure_future(bench.engine.drain(10))
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        await bench.submit(text="new")
    part = await part_of(bench, whole, text="needed")
    assert (await bench.ended(part)).status is Status.SUCCEEDED
    assert await draining == 0
    assert (await bench.ended(whole)).status is Status.SUCCEEDED


async def test_the_api_links_them_and_takes_the_token_while_it_runs(bench: Bench, api: Api) -> None:
    whole = await api.create(delay=30)
    record = await bench.until(await bench.engine.get(whole["id"], "me"), Status.PROCESSING)
    token = bench.run_tokens.make(record.id, record.attempt)
    signed = {"Authorization": f"Bearer {token}"}
    body = {"version": "test/stream", "input": {"text": "x"}}
    part = (await api.post("/v1/predictions", json=body, headers=signed)).json()
    assert part["parent"] == whole["id"]
    assert (await api.ended(part))["parent"] == whole["id"]
    shown = (await api.get(f"/v1/predictions/{whole['id']}")).json()
    assert shown["parts"] == [part["id"]]
    assert "parent" not in shown
    listed = (await api.get("/v1/predictions", params={"parent": whole["id"]})).json()["results"]
    assert [each["id"] for each in listed] == [part["id"]]
    assert (await api.get("/v1/predictions", params={"parent": "0" * 26})).status_code == 404
    assert (await api.post("/admin/models/test/echo/load", headers=signed)).status_code == 403
    assert token not in str([shown, listed, part])
    await api.post(f"/v1/predictions/{whole['id']}/cancel")
    assert (await api.post("/v1/predictions", json=body, headers=signed)).status_code == 401
