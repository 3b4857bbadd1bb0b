"""Models that are on several nodes (``Demand.machines``): where and when they are loaded."""

from __future__ import annotations

import pytest

from appliance.domain.errors import ModelTooLarge
from appliance.scheduler import Decision, Demand, Load, Origin, Refuse, Scheduler, Start
from appliance.scheduler.locality import ASSUMED_SPEED
from tests.support.scheduler_nodes import (
    GIB,
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

# -- the choice of nodes --------------------------------------------------------------------------------


@pytest.mark.parametrize("many_devices", MANY)
def test_the_nodes_with_the_most_free_memory_are_chosen_and_the_best_one_leads(many_devices: int) -> None:
    devices = [*node("a", 20), *node("b", 10), *node("c", 40), *node("d", 30)]
    subject = Scheduler(devices, [model("m/m", 8, machines=3)], many_devices=many_devices)
    subject.queued("p", "m/m", 0.0)
    assert subject.decide(0.0) == [Load("m/m", on("c", "d", "a"), 8 * GIB, may_sleep=False)]
    assert [subject.free(each) for each in on("a", "b", "c", "d")] == [12 * GIB, 10 * GIB, 32 * GIB, 22 * GIB]


def test_the_devices_are_grouped_by_node_and_sorted_within_a_node() -> None:
    devices = [*node("a", 10, 30, 30), *node("b", 40, 10, 40), *node("c", 80)]
    subject = Scheduler(devices, [model("m/m", 20, machines=2, devices=2)])
    subject.queued("p", "m/m", 0.0)
    expected = ("b/cuda:0", "b/cuda:2", "a/cuda:1", "a/cuda:2")
    assert subject.decide(0.0) == [Load("m/m", expected, 20 * GIB, may_sleep=False)]
    subject.loaded("m/m", 1.0, ())
    assert subject.decide(1.0) == [Start("p", "m/m", expected, cold_start=1.0)]


def test_a_share_of_each_device_is_computed_for_the_smallest_device_of_all_nodes() -> None:
    demand = Demand(model="m/m", share=0.5, concurrency=1, machines=2)
    subject = Scheduler([*node("a", 80), *node("b", 20)], [demand])
    subject.queued("p", "m/m", 0.0)
    assert subject.decide(0.0) == [Load("m/m", on("a", "b"), 10 * GIB, may_sleep=False)]


@pytest.mark.parametrize("many_devices", MANY)
def test_the_eviction_of_a_model_on_several_nodes_counts_once(many_devices: int) -> None:
    """To evict w/x alone costs less than w/x and the cheap model, although w/x is on both nodes."""
    demands = [model("w/x", machines=2), model("cheap"), model("w/w", machines=2)]
    subject = Scheduler(nodes("abc"), demands, many_devices=many_devices)
    adopt(subject, {"w/x": on("a", "b"), "cheap": on("c")})
    subject._models["w/x"].load_seconds, subject._models["cheap"].load_seconds = 9.0, 4.0
    subject.queued("p", "w/w", 1000.0)
    assert unloads(finish(subject, subject.decide(1000.0), 1000.0)) == ["w/x"]
    assert loads(subject.decide(1001.0)) == {"w/w": on("a", "b")}


def test_two_cheap_models_are_evicted_rather_than_one_expensive_model() -> None:
    demands = [model("w/x", machines=2), model("y/y"), model("z/z"), model("w/w", machines=2)]
    subject = Scheduler(nodes("abcd"), demands)
    adopt(subject, {"w/x": on("a", "b"), "y/y": on("c"), "z/z": on("d")})
    for name, seconds in {"w/x": 40.0, "y/y": 4.0, "z/z": 4.0}.items():
        subject._models[name].load_seconds = seconds
    subject.queued("p", "w/w", 1000.0)
    assert unloads(subject.decide(1000.0)) == ["y/y", "z/z"]


def test_models_are_not_evicted_while_all_together_cost_more_than_the_waiting() -> None:
    """Each of the two evictions costs less than the waiting prediction, but both cost more."""
    demands = [model("y/y"), model("z/z"), model("w/w", machines=2)]
    subject = Scheduler(nodes("ab"), demands)
    adopt(subject, {"y/y": on("a"), "z/z": on("b")})
    for name in ("y/y", "z/z"):
        subject._models[name].load_seconds = 3.0  # its eviction costs 7.4 s
        for at in (997.0, 998.0, 999.0):  # it is used all the time
            subject.queued(f"{name} {at}", name, at)
            subject.decide(at)
            subject.finished(f"{name} {at}", name, at)
    subject._models["w/w"].load_seconds = 10.0  # the waiting is worth 10 s at once, and 40 s after 30 s
    subject.queued("p", "w/w", 1000.0)
    assert subject.decide(1000.0) == []
    assert unloads(subject.decide(1030.0)) == ["y/y", "z/z"]


def test_nodes_with_the_weights_are_chosen_if_there_are_enough() -> None:
    devices = [*node("a", 20), *node("b", 40), *node("c", 40), *node("d", 20)]
    subject = Scheduler(devices, [model("m/m", 8, machines=2)])
    subject.set_weights("m/m", int(10 * ASSUMED_SPEED), ["a", "d"])
    subject.queued("p", "m/m", 0.0)
    assert loads(subject.decide(0.0)) == {"m/m": on("a", "d")}


def test_of_the_copies_of_weights_the_slowest_counts() -> None:
    """One node has the weights, so the model waits for a copy on each choice: the free memory decides."""
    devices = [*node("a", 20), *node("b", 40), *node("c", 40), *node("d", 20)]
    subject = Scheduler(devices, [model("m/m", 8, machines=2)])
    subject.set_weights("m/m", int(10 * ASSUMED_SPEED), ["a"])
    subject.queued("p", "m/m", 0.0)
    assert loads(subject.decide(0.0)) == {"m/m": on("b", "c")}


def test_instances_are_spread_over_nodes_by_all_of_their_parts() -> None:
    names = ["m/m", "m/m#2"]
    devices = [*node("a", 80), *node("b", 60), *node("c", 20), *node("d", 10)]
    subject = Scheduler(devices, [model(name, machines=2) for name in names])
    subject.set_instances(names, 2)
    load(subject, *names)
    assert [subject.devices(name) for name in names] == [on("a", "b"), on("c", "d")]
    subject.remove_devices("d")
    subject.lost("m/m#2", 1.0, "node d is gone")
    load(subject, "m/m#2", now=2.0)
    assert subject.devices("m/m#2") == on("c", "a")  # one of both nodes of the other instance


def test_only_the_nodes_of_the_demand_are_used() -> None:
    demand = model("m/m", machines=2, nodes=frozenset({"b", "d"}))
    subject = Scheduler(nodes("abcd"), [demand])
    load(subject, "m/m")
    assert subject.devices("m/m") == on("b", "d")


# -- all devices or none --------------------------------------------------------------------------------


@pytest.mark.parametrize("many_devices", MANY)
def test_no_memory_is_reserved_before_it_is_free_on_all_nodes(many_devices: int) -> None:
    """Node b has a busy model. Meanwhile the memory on node a is kept for the waiting model."""
    demands = [model("busy/b", 10), model("m/m", machines=2), model("s/s", 6), model("t/t", 4)]
    subject = Scheduler(nodes("ab"), demands, many_devices=many_devices)
    adopt(subject, {"busy/b": on("b")}, 10)
    subject.queued("running", "busy/b", 1.0)
    subject.decide(1.0)
    subject.queued("p", "m/m", 10.0)
    assert subject.decide(100.0) == []  # node b is drained
    assert subject.reserved("a/cuda:0") == {}
    assert [each.claimed_devices for each in subject.load_queue(100.0)] == [on("a", "b")]
    subject.queued("q", "s/s", 101.0)
    subject.queued("r", "t/t", 101.0)
    assert loads(finish(subject, subject.decide(101.0), 101.0)) == {"t/t": on("a")}
    subject.finished("running", "busy/b", 102.0)
    assert unloads(finish(subject, subject.decide(102.0), 102.0)) == ["busy/b"]
    assert loads(subject.decide(103.0)) == {"m/m": on("b", "a")}


def alternating(subject: Scheduler, first: str, second: str, now: float) -> None:
    """Begin a load on node b 4 s after one on node a. Each takes 8 s."""
    subject.queued(f"p of {first}", first, now)
    assert list(loads(subject.decide(now))) == [first]
    subject.queued(f"p of {second}", second, now + 4)
    assert list(loads(subject.decide(now + 4))) == [second]


@pytest.mark.parametrize("many_devices", MANY)
def test_a_model_with_free_memory_waits_only_for_the_loads_that_run_already(many_devices: int) -> None:
    """Less urgent models on its nodes would always load on one of them."""
    small = [model(f"{place}{number}", 2, nodes=frozenset({place})) for place in "ab" for number in range(4)]
    subject = Scheduler(nodes("ab", 80), [*small, model("m/m", machines=2)], many_devices=many_devices)
    alternating(subject, "a0", "b0", 0.0)
    subject.queued("p", "m/m", 5.0)
    for number in range(1, 4):
        subject.queued(f"a{number}", f"a{number}", 6.0)
        subject.queued(f"b{number}", f"b{number}", 6.0)
    assert subject.decide(6.0) == []
    subject.loaded("a0", 8.0, ())
    assert loads(subject.decide(8.0)) == {}
    subject.loaded("b0", 12.0, ())
    found = loads(subject.decide(12.0))
    assert sorted(found.pop("m/m")) == [*on("a", "b")]
    assert found == {}
    subject.loaded("m/m", 13.0, ())
    assert len(loads(subject.decide(13.0))) == 2  # the other models continue, one on each node


@pytest.mark.parametrize("many_devices", MANY)
def test_an_idle_victim_on_several_nodes_waits_only_for_the_loads_that_run_already(many_devices: int) -> None:
    """The model w/w fits on node c if x/x is evicted, which is on the nodes a and b too."""
    small = [model(f"{place}{number}", 2, nodes=frozenset({place})) for place in "ab" for number in range(4)]
    demands = [*small, model("x/x", machines=3), model("w/w", nodes=frozenset({"c"}))]
    subject = Scheduler([*nodes("ab", 80), *node("c", 10)], demands, many_devices=many_devices)
    adopt(subject, {"x/x": on("a", "b", "c")})
    alternating(subject, "a0", "b0", 1000.0)
    subject.queued("p", "w/w", 1005.0)
    assert subject.decide(1005.0) == []
    subject.queued("q", "a1", 1006.0)
    subject.queued("r", "b1", 1006.0)
    subject.loaded("a0", 1008.0, ())
    assert loads(subject.decide(1008.0)) == {}
    subject.loaded("b0", 1012.0, ())
    decided = subject.decide(1012.0)
    assert unloads(decided) == ["x/x"]
    assert loads(decided) == {}


def test_a_drained_model_on_several_nodes_waits_only_for_the_loads_that_run_already() -> None:
    small = [model(f"{place}{number}", 2, nodes=frozenset({place})) for place in "ab" for number in range(4)]
    subject = Scheduler(nodes("ab", 80), [*small, model("x/x", machines=2)])
    adopt(subject, {"x/x": on("a", "b")})
    alternating(subject, "a0", "b0", 100.0)
    subject.request_unload("x/x", "asked for", 105.0)
    subject.queued("q", "a1", 106.0)
    subject.loaded("a0", 108.0, ())
    assert loads(subject.decide(108.0)) == {}
    subject.loaded("b0", 112.0, ())
    assert unloads(subject.decide(112.0)) == ["x/x"]


def test_a_child_is_loaded_for_a_waiting_parent_on_devices_that_a_drained_model_leaves() -> None:
    """When only children may start, loads are not held back for a model that is drained no more."""
    demands = [model("x/x", machines=2), model("a0", 2), model("par/ent", 2), model("child", 2)]
    subject = Scheduler(nodes("ab", 80), demands)
    adopt(subject, {"x/x": on("a", "b"), "par/ent": on("a")})
    subject.queued("parent", "par/ent", 99.0)
    subject.decide(99.0)
    subject.queued("q", "a0", 100.0)
    subject.decide(100.0)
    subject.request_unload("x/x", "asked for", 101.0)
    assert subject.decide(101.0) == []
    subject.loaded("a0", 102.0, ())
    subject.lost("x/x", 102.0, "a part has ended")
    subject.queued("c", "child", 103.0, parent="parent")
    assert list(loads(subject.decide(103.0, children_only=True))) == ["child"]


# -- whether it fits ------------------------------------------------------------------------------------


FEW = (
    "and the cluster has too few such machines: add a node, or lower the key machines of the model in "
    "models.yaml"
)
SIZES = (
    "but a/cuda:0 has 20.0 GiB, b/cuda:0 has 10.0 GiB, b/cuda:1 has 12.0 GiB, c/cuda:0 has 8.0 GiB, "
    "c/cuda:1 has 8.0 GiB: lower its memory in models.yaml, or choose a smaller model"
)
MORE_MEMORY = "add a node with more memory on its devices"


@pytest.mark.parametrize(
    ("demand", "error", "missing", "reason"),
    [
        (
            model("m/m", 6, machines=5),
            f"model m/m cannot be loaded: it needs 5 machines with one device each, {FEW}",
            0,
            "it needs 5 machines with one device each: add a node with that many devices",
        ),
        (
            model("m/m", 30, machines=2, devices=4),
            f"model m/m cannot be loaded: it needs 2 machines with 4 devices each, {FEW}",
            20,
            "it needs 2 machines with 4 devices each: add a node with that many devices",
        ),
        (
            model("m/m", 16, machines=2),
            f"model m/m needs 16.0 GiB on one device of each of 2 machines, {SIZES}",
            4,
            f"4.0 GiB are missing on one device of each of 2 machines: {MORE_MEMORY}",
        ),
        (
            model("m/m", 9, machines=2, devices=2),
            f"model m/m needs 9.0 GiB on each of 2 devices of each of 2 machines, {SIZES}",
            1,
            f"1.0 GiB are missing on each of 2 devices of each of 2 machines: {MORE_MEMORY}",
        ),
    ],
)
def test_the_reason_why_a_model_fits_on_too_few_nodes_is_given(
    demand: Demand, error: str, missing: int, reason: str
) -> None:
    subject = Scheduler([*node("a", 20), *node("b", 10, 12), *node("c", 8, 8)], [demand])
    with pytest.raises(ModelTooLarge) as raised:
        subject.check_fits("m/m")
    assert raised.value.detail == error
    assert not subject.footprints.of("m/m").fits
    assert not subject.fits_now("m/m")
    subject.queued("p", "m/m", 0.0)
    assert subject.decide(100.0) == []
    (found,) = subject.unplaceable_models(100.0)
    assert found == ("m/m", 1, demand.devices, demand.memory, missing * GIB, reason)


def test_the_reason_names_a_draining_node_on_which_the_model_would_fit() -> None:
    subject = Scheduler(nodes("ab"), [model("m/m", machines=2)])
    subject.drain_node("b")
    subject.check_fits("m/m")
    subject.queued("p", "m/m", 0.0)
    (found,) = subject.unplaceable_models(0.0)
    assert found.reason.startswith("it fits only on a draining node (b)")
    subject.undrain_node("b")
    assert subject.unplaceable_models(0.0) == []


def test_a_model_fits_now_if_enough_nodes_have_free_memory() -> None:
    subject = Scheduler(nodes("abc"), [model("m/m", machines=2), model("x/x", nodes=frozenset({"a"}))])
    load(subject, "x/x")
    assert subject.fits_now("m/m")
    subject.device_used("b/cuda:0", 5 * GIB, 0.0)  # by another program
    assert not subject.fits_now("m/m")


def test_an_estimate_is_raised_as_far_as_all_nodes_have_free_memory() -> None:
    demand = Demand(model="m/m", memory=4 * GIB, concurrency=1, origin=Origin.ESTIMATED, machines=2)
    subject = Scheduler([*node("a", 40), *node("b", 10)], [demand])
    load(subject, "m/m")
    subject.footprints.record_peak("m/m", 20 * GIB, 1.0)
    assert subject.reserved("a/cuda:0") == subject.reserved("b/cuda:0") == {"m/m": 10 * GIB}


# -- child predictions ----------------------------------------------------------------------------------


def child_of_a_parent(places: str, on_nodes: str) -> list[Decision]:
    """Decide about a child whose model needs two of these nodes. A parent holds its memory ``on_nodes``."""
    demands = [model("par/ent", machines=len(on_nodes)), model("child", machines=2)]
    subject = Scheduler(nodes(places), demands)
    adopt(subject, {"par/ent": on(*on_nodes)})
    subject.queued("parent", "par/ent", 1.0)
    subject.decide(1.0)
    subject.queued("c", "child", 2.0, parent="parent")
    return subject.decide(2.0)


def test_a_child_is_refused_if_its_parent_leaves_too_few_nodes() -> None:
    (refused,) = child_of_a_parent("abc", "ab")
    assert isinstance(refused, Refuse)
    assert refused.reason == (
        "this child prediction could never start: model child needs 6.0 GiB on one device of each of 2 "
        "machines, but par/ent, whose predictions wait for their children, leave only 4.0 GiB on a/cuda:0, "
        "4.0 GiB on b/cuda:0, 10.0 GiB on c/cuda:0: lower the memory of these models in models.yaml"
    )


def test_a_child_is_loaded_on_the_nodes_that_its_parent_leaves() -> None:
    assert loads(child_of_a_parent("abcd", "ac")) == {"child": on("b", "d")}


def test_a_child_is_refused_if_the_cluster_has_too_few_nodes() -> None:
    (refused,) = child_of_a_parent("a", "a")
    assert isinstance(refused, Refuse)
    assert refused.reason == (
        "this child prediction could never start: model child needs 2 machines with one device each, and the "
        "cluster has too few such machines: add a node"
    )
