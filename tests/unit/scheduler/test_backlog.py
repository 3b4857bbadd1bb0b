"""Decisions with many devices: which waiting models are planned, and when."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.scheduler import Capacity, Decision, Demand, Load, Residency, Scheduler, Start, Unload

GIB = 1024**3
MANY = 40  # devices


def scheduler(*demands: Demand) -> Scheduler:
    devices = [
        Capacity(f"n{number // 8}/gpu{number}", 10 * GIB, node=f"n{number // 8}") for number in range(MANY)
    ]
    return Scheduler(devices, demands)


def model(name: str, gib: int = 8, **options: Any) -> Demand:
    return Demand(model=name, memory=gib * GIB, **{"concurrency": 1, **options})


def full(*more: Demand, busy: bool) -> tuple[Scheduler, list[str]]:
    """Return a scheduler with a model on each device, and the names. If ``busy``, each runs a prediction."""
    names = [f"on/{number}" for number in range(MANY)]
    subject = scheduler(*map(model, names), *more)
    for name in names:
        subject.queued(f"p of {name}", name, 0.0)
    loads = subject.decide(0.0)
    assert len({each.devices for each in loads if isinstance(each, Load)}) == MANY
    for name in names:
        subject.loaded(name, 1.0, ())
    assert len(subject.decide(1.0)) == MANY
    if not busy:
        for name in names:
            subject.finished(f"p of {name}", name, 2.0)
    return subject, names


def run(subject: Scheduler, decisions: list[Decision], now: float) -> list[Decision]:
    """Confirm all loads and unloads at once, and return the decisions."""
    for each in decisions:
        if isinstance(each, Load):
            subject.loaded(each.model, now, ())
        elif isinstance(each, Unload):
            subject.unloaded(each.model, now)
    return decisions


def test_a_device_that_becomes_free_is_used_at_once() -> None:
    subject, names = full(model("w/w"), busy=True)
    subject.queued("w", "w/w", 3.0)
    assert subject.decide(3.0) == []
    where = subject.devices(names[7])
    subject.finished(f"p of {names[7]}", names[7], 3.5)
    (unload,) = subject.decide(3.5)
    assert isinstance(unload, Unload)
    assert unload.devices == where
    subject.unloaded(names[7], 3.6)
    assert subject.decide(3.6) == [Load("w/w", where, 8 * GIB, may_sleep=False)]


def test_the_most_urgent_models_get_the_devices_that_become_free() -> None:
    waiting = [f"w/{number}" for number in range(100)]
    subject, names = full(*map(model, waiting), busy=True)
    for number, name in enumerate(waiting):
        subject.queued(f"p of {name}", name, 3.0 + number / 100)
    for step in range(40):
        run(subject, subject.decide(4.0 + step / 50), 4.0 + step / 50)
    for name in names[:5]:
        subject.finished(f"p of {name}", name, 8.0)
    loaded = []
    for _ in range(3):
        loaded += [each.model for each in run(subject, subject.decide(8.0), 8.0) if isinstance(each, Load)]
    assert len(loaded) == 5
    assert set(loaded) <= set(waiting[:10])


def test_every_waiting_model_is_loaded_finally() -> None:
    waiting = [f"w/{number}" for number in range(90)]
    subject, _ = full(*map(model, waiting), busy=False)
    for name in waiting:
        subject.queued(f"p of {name}", name, 3.0)
    now, ended = 3.0, set()
    for _ in range(3000):
        decisions = run(subject, subject.decide(now), now)
        for each in decisions:
            if isinstance(each, Start):
                subject.finished(each.id, each.model, now)
                ended.add(each.model)
        if len(ended) == len(waiting):
            break
        wakeup = subject.next_wakeup(now)
        now = now + 0.01 if decisions or wakeup is None else max(now + 0.01, wakeup)
    assert ended == set(waiting)


def world(many_devices: int) -> Scheduler:
    """Five free nodes with one device, and four nodes with eight devices that each hold an idle model."""
    single = [Capacity(f"s{number}/gpu0", 80 * GIB, node=f"s{number}") for number in range(5)]
    devices = [f"b{node}/gpu{number}" for node in range(4) for number in range(8)]
    large = [Capacity(each, 80 * GIB, node=each.split("/")[0]) for each in devices]
    subject = Scheduler([*single, *large], (), many_devices=many_devices)
    for device in devices:
        subject.add(model(device, 60))
        subject.adopted(device, (device,), 60 * GIB, 0.0, levels=(), level=None)
    return subject


@pytest.mark.parametrize("many_devices", [0, 1000])
@pytest.mark.parametrize(
    "wanted",
    [
        model("w/w", 60, devices=2),
        model("w/w", 60, devices=8),
        Demand(model="w/w", share=0.9, concurrency=1, devices=3),
    ],
)
def test_a_model_with_several_devices_is_loaded_although_free_nodes_have_only_one(
    wanted: Demand, many_devices: int
) -> None:
    subject = world(many_devices)
    subject.add(wanted)
    subject.queued("w", "w/w", 100.0)
    now: float | None = 100.0
    for _ in range(200):
        if now is None or subject.residency("w/w") is Residency.READY:
            break
        run(subject, subject.decide(now), now)
        now = subject.next_wakeup(now)
    assert subject.residency("w/w") is Residency.READY
    assert len(subject.devices("w/w")) == wanted.devices


def test_a_model_that_is_being_loaded_keeps_no_memory_by_its_plan() -> None:
    subject, names = full(model("v/v", 5), model("w/w", 5), busy=True)
    subject.queued("v", "v/v", 3.0)
    subject.queued("w", "w/w", 3.4)
    subject.finished(f"p of {names[0]}", names[0], 3.5)
    assert [type(each) for each in subject.decide(10.0)] == [Unload]
    backlog, waiting = subject._placements._backlog, subject._models["w/w"]
    (device,) = subject.devices(names[0])
    assert backlog.reserved_for_others(waiting, 10.0)[device] == 5 * GIB
    subject.unloaded(names[0], 10.1)
    assert [each.model for each in subject.decide(10.1) if isinstance(each, Load)] == ["v/v"]
    assert backlog.reserved_for_others(waiting, 10.1)[device] == 0


def test_a_plan_moves_to_another_device_if_its_node_is_removed() -> None:
    subject, _ = full(model("w/w"), busy=False)
    subject.queued("w", "w/w", 10.0)
    (unload,) = subject.decide(10.0)
    assert isinstance(unload, Unload)
    node = unload.devices[0].split("/")[0]
    for name in subject.remove_devices(node):
        subject.lost(name, 11.0, "the node is gone")
    (second,) = subject.decide(11.0)
    assert isinstance(second, Unload)
    assert not second.devices[0].startswith(f"{node}/")


def test_plans_are_forgotten_when_nodes_are_removed_and_all_devices_are_compared() -> None:
    subject, _ = full(model("w/w"), busy=False)
    subject.queued("w", "w/w", 10.0)
    assert len(subject.decide(10.0)) == 1
    for node in ("n1", "n2", "n3", "n4"):
        for name in subject.remove_devices(node):
            subject.lost(name, 11.0, "the node is gone")
    assert len(subject.capacities) == 8
    for now in (11.0, 12.0, 13.0):
        run(subject, subject.decide(now), now)
    assert subject.residency("w/w") is Residency.READY


def test_a_blocked_model_is_tried_again_after_its_time() -> None:
    subject = scheduler(model("w/w"))
    subject.queued("w", "w/w", 0.0)
    assert len(subject.decide(0.0)) == 1
    assert subject.load_failed("w/w", 1.0, "it is broken") == ["w"]
    subject.queued("x", "w/w", 2.0)
    assert subject.decide(2.0) == []
    at = subject.next_wakeup(2.0)
    while at is not None and at < 11.0:
        assert subject.decide(at) == []
        at = subject.next_wakeup(at)
    assert at is not None
    assert [type(each) for each in subject.decide(at)] == [Load]
