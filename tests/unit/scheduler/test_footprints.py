"""What models were found to take, and what follows for what they hold."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.domain.errors import ModelTooLarge
from appliance.scheduler import (
    MARGIN,
    Capacity,
    Demand,
    EventKind,
    Load,
    Origin,
    Scheduler,
    Start,
    Unload,
)

GIB = 1024**3


def scheduler(*demands: Demand, memory: int = 10 * GIB) -> Scheduler:
    return Scheduler([Capacity("gpu0", memory)], demands)


def estimated(name: str, gib: float = 4) -> Demand:
    return Demand(model=name, memory=int(gib * GIB), concurrency=2, origin=Origin.ESTIMATED)


def declared(name: str, gib: float = 4, *, pin: bool = False) -> Demand:
    return Demand(model=name, memory=int(gib * GIB), concurrency=2, pin=pin)


def loaded(subject: Scheduler, name: str, now: float = 0.0) -> None:
    subject.request_load(name)
    assert name in [each.model for each in subject.decide(now) if isinstance(each, Load)]
    subject.loaded(name, now, ())


def ran(subject: Scheduler, name: str, now: float) -> None:
    subject.queued(f"{name}@{now}", name, now)
    subject.decide(now)
    subject.finished(f"{name}@{now}", name, now)


def unloaded(subject: Scheduler, name: str, now: float) -> None:
    subject.request_unload(name, "asked for", now)
    subject.decide(now)
    subject.unloaded(name, now)


def holds(subject: Scheduler, name: str) -> int:
    return subject.reserved("gpu0")[name]


def logged(subject: Scheduler, what: EventKind) -> list[str]:
    return [str(each) for each in subject.events() if each.kind is what]


def test_an_estimate_gives_way_to_less_once_a_prediction_has_run() -> None:
    subject = scheduler(estimated("a/a"))
    loaded(subject, "a/a")
    subject.footprints.record_peak("a/a", GIB, 1.0)
    assert holds(subject, "a/a") == 4 * GIB  # its first prediction may take more than loading it
    ran(subject, "a/a", 2.0)
    assert holds(subject, "a/a") == int(GIB * MARGIN)
    subject.footprints.record_peak("a/a", 2 * GIB, 3.0)
    assert holds(subject, "a/a") == int(2 * GIB * MARGIN)
    assert subject.free("gpu0") == 10 * GIB - int(2 * GIB * MARGIN)
    known = subject.footprints.of("a/a")
    assert (known.demand.origin, known.peak, known.estimate) == (Origin.MEASURED, 2 * GIB, 4 * GIB)
    assert logged(subject, EventKind.RESIZED)[0] == (
        "model a/a now reserves 1.1 GiB on gpu0: "
        "its measured peak is 1.0 GiB, and 4.0 GiB were reserved before"
    )


def test_an_estimate_gives_way_to_more_at_once_but_only_to_what_is_free() -> None:
    subject = scheduler(estimated("a/a"), declared("b/b", 5))
    loaded(subject, "a/a")
    loaded(subject, "b/b", 1.0)
    subject.footprints.record_peak("a/a", 6 * GIB, 2.0)
    assert holds(subject, "a/a") == 5 * GIB
    assert subject.free("gpu0") == 0
    assert subject.demand("a/a").memory == int(6 * GIB * MARGIN)  # the next time


def test_what_is_declared_stays_and_that_it_is_too_little_is_said_once() -> None:
    subject = scheduler(declared("a/a"))
    loaded(subject, "a/a")
    ran(subject, "a/a", 1.0)
    subject.footprints.record_peak("a/a", GIB, 2.0)
    subject.footprints.record_peak("a/a", 5 * GIB, 3.0)
    subject.footprints.record_peak("a/a", 6 * GIB, 4.0)
    assert holds(subject, "a/a") == 4 * GIB
    known = subject.footprints.of("a/a")
    assert (known.demand.memory, known.exceeds, known.peak) == (4 * GIB, True, 6 * GIB)
    assert len(logged(subject, EventKind.EXCEEDS)) == 1
    assert not subject.footprints.record_out_of_memory("a/a", 7 * GIB, 5.0, reason="", available=None)
    assert subject.demand("a/a").memory == 4 * GIB


def test_a_declared_size_is_a_bound_and_an_estimate_may_take_what_nobody_holds() -> None:
    subject = scheduler(estimated("a/a", 2), declared("b/b", 3))
    loaded(subject, "a/a")
    assert subject.footprints.limit("b/b") is None
    assert subject.footprints.limit("a/a") == 10 * GIB
    loaded(subject, "b/b", 1.0)
    assert subject.footprints.limit("a/a") == 7 * GIB
    assert subject.footprints.limit("b/b") == 3 * GIB


def test_one_that_ran_out_of_memory_gets_more_and_remembers_it() -> None:
    subject = scheduler(estimated("a/a"))
    loaded(subject, "a/a")
    assert subject.footprints.record_out_of_memory("a/a", 5 * GIB, 1.0, "a/a is too large", available=None)
    subject.lost("a/a", 1.0, "")
    assert subject.demand("a/a").memory == int(5 * GIB * MARGIN)
    loaded(subject, "a/a", 2.0)
    assert subject.footprints.record_out_of_memory(
        "a/a", None, 3.0, reason="", available=None
    )  # on a GPU it is not known: all that it had
    subject.lost("a/a", 3.0, "")
    assert subject.demand("a/a").memory == int(int(5 * GIB * MARGIN) * MARGIN)
    assert subject.footprints.of("a/a").out_of_memory == 2
    assert logged(subject, EventKind.OUT_OF_MEMORY)[0] == "out of memory: a/a is too large"


def test_no_more_is_asked_for_than_there_could_ever_be() -> None:
    subject = scheduler(estimated("a/a"), declared("b/b", 3, pin=True))
    loaded(subject, "b/b")
    loaded(subject, "a/a", 1.0)
    assert subject.footprints.record_out_of_memory(
        "a/a", 6 * GIB + GIB // 2, 2.0, available=6 * GIB, reason=""
    )
    subject.lost("a/a", 2.0, "")
    assert subject.demand("a/a").memory == 7 * GIB  # the rest is pinned
    loaded(subject, "a/a", 3.0)
    assert not subject.footprints.record_out_of_memory("a/a", 9 * GIB, 4.0, reason="", available=None)
    subject.check_fits("a/a")


def test_one_that_took_more_than_there_could_ever_be_is_not_tried_again_for_a_little_more() -> None:
    subject = scheduler(estimated("a/a"), declared("b/b", 1))
    loaded(subject, "b/b")
    loaded(subject, "a/a", 1.0)
    had = subject.footprints.limit("a/a")
    assert had == 9 * GIB
    assert not subject.footprints.record_out_of_memory(
        "a/a", 11 * GIB, 2.0, available=had, reason=""
    )  # without b/b it would have 10
    assert subject.demand("a/a").memory == 10 * GIB


def test_one_large_prediction_does_not_hold_memory_for_ever() -> None:
    subject = scheduler(estimated("a/a"))
    expected = []
    for round_, peak in enumerate((8 * GIB, GIB, GIB, GIB)):
        now = 100.0 * round_
        loaded(subject, "a/a", now)
        ran(subject, "a/a", now + 1)
        subject.footprints.record_peak("a/a", peak, now + 2)
        unloaded(subject, "a/a", now + 3)
        expected.append(subject.footprints.of("a/a").peak)
    assert expected == [8 * GIB, 9 * GIB // 2, 11 * GIB // 4, 15 * GIB // 8]
    assert subject.demand("a/a").memory == int(15 * GIB // 8 * MARGIN)


def test_what_an_earlier_run_has_found_is_known_from_the_start() -> None:
    subject = scheduler(estimated("a/a"), declared("b/b"))
    subject.footprints.restore_peak("a/a", GIB)
    subject.footprints.restore_peak("b/b", GIB)
    assert subject.demand("a/a").memory == int(GIB * MARGIN)
    assert (subject.demand("b/b").memory, subject.footprints.of("b/b").peak) == (4 * GIB, GIB)


def test_what_others_take_of_a_device_is_not_there_for_models() -> None:
    subject = scheduler(declared("a/a", 4), declared("b/b", 5))
    loaded(subject, "a/a")
    subject.device_used("gpu0", 7 * GIB, 1.0)
    assert (subject.footprints.foreign_memory("gpu0"), subject.free("gpu0")) == (3 * GIB, 3 * GIB)
    subject.queued("p", "b/b", 5.0)
    decided = subject.decide(5.0)
    assert [each for each in decided if isinstance(each, Load)] == []
    subject.unloaded("a/a", 6.0)
    assert [each.model for each in subject.decide(6.0) if isinstance(each, Load)] == ["b/b"]
    assert logged(subject, EventKind.FOREIGN) == ["programs outside of the appliance use 3.0 GiB of gpu0"]


def test_what_waits_for_others_to_let_go_is_loaded_when_they_do() -> None:
    subject = scheduler(declared("a/a", 8))
    subject.check_fits("a/a")
    subject.device_used("gpu0", 5 * GIB, 0.0)
    subject.check_fits("a/a")  # it could: what others take is not for ever
    subject.queued("p", "a/a", 0.0)
    assert subject.decide(0.0) == []
    assert subject.next_wakeup(0.0) == 1.0
    subject.device_used("gpu0", 2 * GIB, 1.0)
    assert [type(each) for each in subject.decide(1.0)] == [Load]


def test_that_a_model_never_fits_is_said_with_where_its_size_comes_from() -> None:
    subject = scheduler(estimated("a/a", 20), declared("b/b", 20))
    with pytest.raises(ModelTooLarge, match=r"an estimated 20\.0 GiB, but .* declare its memory"):
        subject.check_fits("a/a")
    with pytest.raises(ModelTooLarge, match=r"needs 20\.0 GiB, but .* lower its memory in models.yaml"):
        subject.check_fits("b/b")
    known = subject.footprints.of("a/a")
    assert not known.fits
    assert known.problem is not None
    assert "gpu0 has 10.0 GiB" in known.problem


class Machine:
    """Hosts take anything between nothing and a device, and run out of memory; others come and go."""

    def __init__(self, sizes: list[int], devices: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.names = [f"m/{number}" for number in range(len(sizes))]
        origins = list(Origin)
        self.subject = Scheduler(
            [Capacity(f"gpu{number}", 10 * GIB) for number in range(devices)],
            [
                Demand(model=name, memory=size * GIB, concurrency=1, origin=self.chance.choice(origins))
                for name, size in zip(self.names, sizes, strict=True)
            ],
        )
        for number in range(20):
            self.subject.queued(f"p{number}", self.chance.choice(self.names), 0.0)
        self.ended = 0
        self.wild = True  # until then worker processes are lost, and others take what is free
        self.coming: set[str] = set()
        self.running: dict[str, str] = {}

    def step(self, now: float) -> None:
        for device in self.subject.capacities:
            if not self.wild or self.chance.random() < 0.2:
                self.subject.device_used(device, self.chance.randint(0, 10 * GIB) * self.wild, now)
        leaving = self.decide(now)
        for name in [name for name in self.names if self.subject.devices(name)]:
            if self.chance.random() < 0.3:
                self.subject.footprints.record_peak(name, self.chance.randint(1, 10 * GIB), now)
        for name in [name for name in sorted(self.coming) if self.chance.random() < 0.5]:
            self.come(name, now)
        for name in leaving:
            self.subject.unloaded(name, now)
        for id in [id for id in self.running if self.chance.random() < 0.5]:
            self.subject.finished(id, self.running.pop(id), now)
            self.ended += 1

    def decide(self, now: float) -> list[str]:
        leaving = []
        for decision in self.subject.decide(now):
            match decision:
                case Load(model, places):
                    self.coming.add(model)
                    assert all(self.subject.free(place) >= 0 for place in places), "others' bytes"
                case Unload(model):
                    leaving.append(model)
                case Start(id, model):
                    self.running[id] = model
        return leaving

    def come(self, name: str, now: float) -> None:
        self.coming.remove(name)
        if self.wild and self.chance.random() < 0.3:
            took = self.chance.choice([None, self.chance.randint(1, 12 * GIB)])
            self.subject.footprints.record_out_of_memory(name, took, now, reason="", available=None)
            self.subject.lost(name, now, "")
        else:
            self.subject.loaded(name, now, ())

    def check(self) -> None:
        for device, capacity in self.subject.capacities.items():
            foreign, free = self.subject.footprints.foreign_memory(device), self.subject.free(device)
            assert sum(self.subject.reserved(device).values()) + free + foreign == capacity
            assert free >= 0 or foreign > 0, f"{device} is over its capacity"


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=5),
    devices=st.integers(1, 2),
    seed=st.integers(0, 2**32),
)
def test_whatever_is_measured_nothing_is_overbooked_and_everything_ends(
    sizes: list[int], devices: int, seed: int
) -> None:
    machine = Machine(sizes, devices, seed)
    for step in range(2000):
        machine.wild = step < 300
        machine.step(float(step))
        machine.check()
        if machine.ended == 20:
            break
    assert machine.ended == 20
    for name in machine.names:
        machine.subject.check_fits(name)
