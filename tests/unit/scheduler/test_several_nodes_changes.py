"""Models that are on several nodes: nodes that are lost, drained or fail, and the life of such models."""

from __future__ import annotations

import pytest

from appliance.domain.errors import ModelTooLarge
from appliance.scheduler import Residency, Scheduler, Sleep, SleepFootprint, Start, Unload
from tests.support.scheduler_nodes import (
    GIB,
    LEVELS,
    MANY,
    adopt,
    finish,
    load,
    loads,
    model,
    node,
    nodes,
    on,
    unloads,
)

# -- nodes that are lost --------------------------------------------------------------------------------


def in_state(state: Residency) -> Scheduler:
    """Nodes a to d, and the model m/m in this state on the nodes a and b, with a waiting prediction."""
    subject = Scheduler(nodes("abcd"), [model("m/m", machines=2)])
    subject.request_load("m/m")
    assert loads(subject.decide(0.0)) == {"m/m": on("a", "b")}
    if state is not Residency.LOADING:
        subject.loaded("m/m", 0.0, LEVELS)
    if state in {Residency.READY, Residency.DRAINING}:
        subject.queued("running", "m/m", 1.0)
        assert len(subject.decide(1.0)) == 1
    if state in {Residency.DRAINING, Residency.UNLOADING}:
        subject.request_unload("m/m", "asked for", 1.0)
        subject.decide(1.0)
    subject.queued("waiting", "m/m", 33.0)
    assert subject.residency("m/m") is state
    return subject


@pytest.mark.parametrize("lost", ["a", "b"])
@pytest.mark.parametrize(
    "state", [Residency.LOADING, Residency.READY, Residency.DRAINING, Residency.UNLOADING]
)
def test_a_model_is_gone_if_any_of_its_nodes_is_lost(state: Residency, lost: str) -> None:
    (left,) = {"a", "b"} - {lost}
    subject = in_state(state)
    assert subject.remove_devices(lost) == ["m/m"]
    assert subject.decide(100.0) == []  # nothing is decided about the model before it is reported lost
    assert subject.reserved(f"{left}/cuda:0") == {"m/m": 6 * GIB}
    subject.lost("m/m", 101.0, f"node {lost} is gone")
    assert subject.residency("m/m") is Residency.COLD
    assert subject.reserved(f"{left}/cuda:0") == {}
    again = loads(subject.decide(101.0))
    assert again == {"m/m": on(*sorted({left, "c", "d"})[:2])}
    subject.loaded("m/m", 102.0, ())
    assert [each.id for each in subject.decide(102.0) if isinstance(each, Start)] == ["waiting"]
    subject.add_devices(node(lost, 10))
    assert subject.free(f"{lost}/cuda:0") == 10 * GIB


def test_a_model_waits_until_enough_nodes_are_left() -> None:
    subject = Scheduler(nodes("ab"), [model("m/m", machines=2)])
    load(subject, "m/m")
    subject.remove_devices("b")
    subject.lost("m/m", 1.0, "node b is gone")
    subject.queued("p", "m/m", 2.0)
    assert subject.decide(2.0) == []
    subject.add_devices(node("c", 10))
    assert loads(subject.decide(3.0)) == {"m/m": on("a", "c")}


def test_a_model_is_reported_once_if_two_of_its_nodes_are_lost() -> None:
    subject = Scheduler(nodes("abcd"), [model("m/m", machines=2)])
    load(subject, "m/m")
    assert subject.remove_devices("a") == ["m/m"]
    assert subject.remove_devices("b") == []
    subject.lost("m/m", 1.0, "node a is gone")
    assert list(subject.capacities) == [*on("c", "d")]
    subject.add_devices(nodes("ab"))  # nothing is reserved there any more
    load(subject, "m/m", now=2.0)


@pytest.mark.parametrize("many_devices", MANY)
def test_the_memory_of_a_model_with_a_lost_node_is_waited_for_and_the_model_is_not_evicted(
    many_devices: int,
) -> None:
    """Node b holds a part of m/m, which ran a long prediction and is gone. Node c has an idle model."""
    demands = [model("m/m", 8, machines=2), model("idle", 8), model("w/w", 8)]
    subject = Scheduler(nodes("abc"), demands, many_devices=many_devices)
    adopt(subject, {"m/m": on("a", "b"), "idle": on("c")}, 8)
    subject._models["idle"].load_seconds, subject._models["m/m"].run_seconds = 30.0, 500.0
    subject.queued("long", "m/m", 999.0)
    subject.decide(999.0)
    subject.remove_devices("a")
    subject.queued("p", "w/w", 1000.0)
    assert subject.decide(1000.0) == []
    subject.drain_node("b")
    subject.undrain_node("b")
    subject.lost("m/m", 1001.0, "node a is gone")
    assert loads(subject.decide(1001.0)) == {"w/w": on("b")}


def test_a_model_with_a_lost_node_is_not_evicted_for_more_memory_than_it_leaves() -> None:
    """Node b has 4 GiB left, 8 GiB in the model that is gone, and 8 GiB in a busy model."""
    demands = [model("m/m", 8, machines=2), model("busy", 8), model("w/w", 18)]
    subject = Scheduler([*node("a", 10), *node("b", 20)], demands)
    adopt(subject, {"m/m": on("a", "b"), "busy": on("b")}, 8)
    subject.queued("long", "busy", 999.0)
    subject.decide(999.0)
    subject.remove_devices("a")
    subject.queued("p", "w/w", 1000.0)
    assert subject.decide(1000.0) == []


def test_a_model_with_a_lost_node_is_not_drained_from_another_node() -> None:
    subject = in_state(Residency.READY)
    subject.remove_devices("a")
    subject.drain_node("b")
    assert subject.decide(34.0) == []
    assert subject.residency("m/m") is Residency.READY
    subject.lost("m/m", 35.0, "node a is gone")
    assert loads(subject.decide(35.0)) == {"m/m": on("c", "d")}


def test_a_child_is_not_refused_because_of_a_parent_with_a_lost_node() -> None:
    """The parent runs again elsewhere, so its memory becomes free."""
    demands = [model("par/ent", machines=2), model("child", 6)]
    subject = Scheduler(nodes("ab"), demands)
    adopt(subject, {"par/ent": on("a", "b")})
    subject.queued("parent", "par/ent", 1.0)
    subject.decide(1.0)
    subject.remove_devices("a")
    subject.queued("c", "child", 2.0, parent="parent")
    assert subject.decide(2.0) == []
    subject.lost("par/ent", 3.0, "node a is gone")
    assert loads(subject.decide(3.0)) == {"child": on("b")}


# -- nodes that are drained, or make loads fail ----------------------------------------------------------


@pytest.mark.parametrize("drained", ["a", "b"])
def test_a_model_with_any_part_on_a_draining_node_is_unloaded_and_loaded_elsewhere(drained: str) -> None:
    (left,) = {"a", "b"} - {drained}
    subject = Scheduler([*nodes("ab", 20), *node("c", 10)], [model("m/m", machines=2, concurrency=1)])
    load(subject, "m/m")
    subject.queued("running", "m/m", 1.0)
    subject.decide(1.0)
    subject.drain_node(drained)
    subject.queued("waiting", "m/m", 2.0)
    assert subject.decide(2.0) == []
    assert subject.models_on_node(drained).staying == {"m/m": "1 prediction is running"}
    assert subject.models_on_node(left).models == ("m/m",)
    subject.finished("running", "m/m", 3.0)
    reason = f"node {drained} is draining"
    assert subject.decide(3.0) == [Unload("m/m", reason, on("a", "b"), 0)]
    subject.unloaded("m/m", 4.0)
    assert loads(subject.decide(4.0)) == {"m/m": on(left, "c")}
    assert subject.models_on_node(drained) == (True, (), {})


def test_a_pinned_model_moves_to_other_nodes_or_says_why_it_stays() -> None:
    subject = Scheduler(nodes("ab", 20), [model("m/m", machines=2, pin=True)])
    finish(subject, subject.decide(0.0), 0.0)
    subject.drain_node("b")
    assert subject.decide(1.0) == []
    reason = "pinned, and it needs 2 machines with one device each: too few nodes are left"
    assert subject.models_on_node("b").staying == {"m/m": reason}
    subject.add_devices(node("c", 4))
    assert subject.decide(2.0) == []
    missing = "2.0 GiB are missing on one device of each of 2 machines"
    reason = f"pinned, and no other node has the memory: {missing}"
    assert subject.models_on_node("b").staying == {"m/m": reason}
    subject.add_devices(node("d", 10))
    assert unloads(finish(subject, subject.decide(3.0), 3.0)) == ["m/m"]
    assert loads(subject.decide(4.0)) == {"m/m": on("a", "d")}


@pytest.mark.parametrize("many_devices", MANY)
def test_a_node_that_made_a_load_fail_is_avoided_for_some_time(many_devices: int) -> None:
    devices = [*nodes("ab", 20), *node("c", 10)]
    subject = Scheduler(devices, [model("m/m", machines=2)], many_devices=many_devices)
    subject.queued("p", "m/m", 0.0)
    assert loads(subject.decide(0.0)) == {"m/m": on("a", "b")}
    assert subject.avoid_node("m/m", "b", 0.0)
    subject.lost("m/m", 0.0, "its disk is full")
    assert loads(subject.decide(0.0)) == {"m/m": on("a", "c")}
    assert not subject.avoid_node("m/m", "c", 1.0)  # only one node is left
    subject.lost("m/m", 1.0, "its disk is full")
    assert subject.decide(2.0) == []
    assert loads(subject.decide(11.5)) == {"m/m": on("a", "b")}
    subject.loaded("m/m", 12.0, ())
    assert subject._models["m/m"].avoided.keys() == {"c"}  # failures of the nodes that worked are forgotten


# -- loaded at the start, adopted, pinned ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["pin", "preload"])
def test_pinned_and_preloaded_models_are_loaded_on_all_of_their_nodes(how: str) -> None:
    subject = Scheduler(nodes("abc"), [model("m/m", machines=2, **{how: True})])
    assert loads(finish(subject, subject.decide(0.0), 0.0)) == {"m/m": on("a", "b")}


def test_a_pinned_model_is_not_evicted_and_leaves_less_memory_on_each_node() -> None:
    demands = [model("m/m", machines=2, pin=True), model("n/n"), model("o/o", machines=2)]
    subject = Scheduler(nodes("abc"), demands)
    finish(subject, subject.decide(0.0), 0.0)
    subject.queued("p", "o/o", 1.0)
    assert subject.decide(1000.0) == []
    with pytest.raises(ModelTooLarge, match="partly reserved for the pinned models m/m"):
        subject.check_fits("o/o")
    assert subject.footprints.of("n/n").devices == on("c")


def test_an_adopted_model_holds_memory_on_all_of_its_nodes() -> None:
    subject = Scheduler(nodes("abc"), [model("m/m", machines=2), model("n/n")])
    adopt(subject, {"m/m": on("b", "a")})
    assert subject.devices("m/m") == on("b", "a")
    assert [subject.free(each) // GIB for each in on("a", "b", "c")] == [4, 4, 10]
    subject.queued("p", "m/m", 1.0)
    subject.queued("q", "n/n", 1.0)
    decided = subject.decide(1.0)
    assert Start("p", "m/m", on("b", "a")) in decided
    assert loads(decided) == {"n/n": on("c")}


def test_a_model_on_several_nodes_is_unloaded_when_idle_and_does_not_sleep() -> None:
    devices = [*node("a", 10, main=20), *node("b", 10, main=20)]
    other = model("s/s", 4, sleep_footprint=SleepFootprint(0, 4 * GIB), idle_unload_after=60.0)
    subject = Scheduler(devices, [model("m/m", machines=2, idle_unload_after=60.0), other])
    load(subject, "m/m", "s/s")
    assert [type(each) for each in finish(subject, subject.decide(31.0), 31.0)] == [Sleep]
    (place,) = subject.devices("s/s")
    assert subject.reserved(f"{place[0]}/cpu") == {"s/s": 4 * GIB}
    assert unloads(subject.decide(60.0)) == ["m/m", "s/s"]


def test_a_model_in_main_memory_holds_it_on_each_of_its_nodes() -> None:
    devices = [*node("a", 10, main=20), *node("b", 10, main=20)]
    subject = Scheduler(devices, [model("m/m", machines=2, on_cpu=True)])
    load(subject, "m/m")
    assert subject.devices("m/m") == ("a/cpu", "b/cpu")
    subject.request_unload("m/m", "asked for", 1.0)
    finish(subject, subject.decide(1.0), 1.0)
    assert [subject.free(each) for each in ("a/cpu", "b/cpu")] == [20 * GIB, 20 * GIB]


# -- instances ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "more"), [("abc", {}), ("abcd", {"m/m#2": on("c", "d")})])
def test_another_instance_is_loaded_only_if_enough_nodes_have_free_memory(
    names: str, more: dict[str, tuple[str, ...]]
) -> None:
    instances = ["m/m", "m/m#2"]
    subject = Scheduler(nodes(names), [model(each, machines=2, concurrency=1) for each in instances])
    subject.set_instances(instances, 2)
    load(subject, "m/m")
    for number in range(3):
        subject.queued(f"p{number}", "m/m", 1.0)
    subject.decide(1.0)
    assert loads(subject.decide(50.0)) == more
    for name in more:
        subject.loaded(name, 51.0, ())
        assert [each.model for each in subject.decide(51.0) if isinstance(each, Start)] == [name]
