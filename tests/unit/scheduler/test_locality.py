"""The nodes that have the weights of a model, and how they change the choice of a node."""

from __future__ import annotations

import pytest

from appliance.scheduler import Capacity, Demand, Load, Scheduler
from appliance.scheduler.locality import ASSUMED_SPEED

GIB = 1024**3
SIZE = int(10 * ASSUMED_SPEED)  # ten seconds of copying


def scheduler() -> Scheduler:
    """A node b with more free memory than node a."""
    return Scheduler(
        [Capacity("a/cuda:0", 20 * GIB, node="a"), Capacity("b/cuda:0", 40 * GIB, node="b")],
        [Demand(model=name, memory=12 * GIB, concurrency=1) for name in ("m/m", "n/n")],
    )


def placed(subject: Scheduler, name: str, now: float) -> tuple[str, ...]:
    """Queue a prediction, and return the devices on which its model is loaded."""
    subject.queued(f"p of {name} at {now}", name, now)
    (load,) = [each for each in subject.decide(now) if isinstance(each, Load)]
    return load.devices


def test_a_model_is_loaded_where_its_weights_are() -> None:
    subject = scheduler()
    subject.set_weights("m/m", SIZE, ["a"])
    assert placed(subject, "m/m", 0.0) == ("a/cuda:0",)


def test_a_model_whose_weights_are_on_no_or_all_nodes_is_loaded_where_most_memory_is_free() -> None:
    for nodes in ([], ["a", "b"]):
        subject = scheduler()
        subject.set_weights("m/m", SIZE, nodes)
        assert placed(subject, "m/m", 0.0) == ("b/cuda:0",)


def test_a_copy_is_cheaper_than_a_long_wait() -> None:
    """Node a has a model that is always in use, so the weights of the other model are copied to node b."""
    subject = scheduler()
    subject.set_weights("n/n", SIZE, ["a"])
    assert placed(subject, "n/n", 0.0) == ("a/cuda:0",)
    subject.loaded("n/n", 5.0, ())
    for second in range(5, 30):
        subject.queued(f"q{second}", "n/n", float(second))
    subject.decide(30.0)
    subject.set_weights("m/m", SIZE // 10, ["a"])
    assert placed(subject, "m/m", 31.0) == ("b/cuda:0",)


def test_copied_and_deleted_weights_change_the_chosen_node() -> None:
    subject = scheduler()
    subject.set_weights("m/m", SIZE, ["b"])
    subject.weights_copied("m/m", "a", SIZE, 10.0)
    subject.weights_deleted("m/m", "b")
    assert placed(subject, "m/m", 0.0) == ("a/cuda:0",)


def test_weights_of_a_removed_node_are_forgotten() -> None:
    subject = scheduler()
    subject.set_weights("m/m", SIZE, ["a"])
    subject.remove_devices("a")
    subject.add_devices([Capacity("a/cuda:0", 20 * GIB, node="a")])
    assert placed(subject, "m/m", 0.0) == ("b/cuda:0",)


def test_the_copy_does_not_count_as_the_duration_of_the_load() -> None:
    subject = scheduler()
    placed(subject, "m/m", 0.0)
    subject.weights_copied("m/m", "b", SIZE, 30.0)
    subject.loaded("m/m", 34.0, ())
    assert subject.load_seconds("m/m") == 4.0


def test_the_speed_of_copies_is_measured() -> None:
    subject = scheduler()
    locality = subject._locality  # no public method returns the speed
    locality.set_weights("m/m", SIZE, [])
    before = locality.copy_seconds("m/m", "a")
    locality.weights_copied("n/n", "b", SIZE, 100.0)
    assert before == pytest.approx(10.0)
    assert locality.copy_seconds("m/m", "a") > before
    locality.weights_copied("n/n", "b", 10, 100.0)  # too few bytes to measure the speed
    assert locality.copy_seconds("m/m", "a") < 100.0
