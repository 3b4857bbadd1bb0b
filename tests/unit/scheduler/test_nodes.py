"""Nodes of a cluster that join, are removed and are drained."""

from __future__ import annotations

import re
from typing import Any

import pytest

from appliance.domain.errors import ModelTooLarge
from appliance.scheduler import (
    Demand,
    Load,
    Origin,
    Residency,
    Scheduler,
    Sleep,
    SleepFootprint,
    SleepLevel,
    Start,
    Unload,
    Wake,
)
from tests.support.scheduler_nodes import GIB, LEVELS, finish, load, model, node


def sleeper(name: str, gib: int = 6, **options: Any) -> Demand:
    return model(name, gib, sleep_footprint=SleepFootprint(GIB // 2, gib * GIB), **options)


def put_to_sleep(subject: Scheduler, name: str, now: float) -> None:
    """Let an idle model fall asleep; it has ``idle_unload_after=60``."""
    assert [type(each) for each in finish(subject, subject.decide(now), now)] == [Sleep]


# -- nodes that make loads fail --------------------------------------------------------------------------


@pytest.mark.parametrize("many_devices", [64, 0])
def test_a_model_is_not_loaded_for_some_time_on_a_node_that_made_its_load_fail(many_devices: int) -> None:
    nodes = [*node("a", 24), *node("b", 16), *node("c", 8)]
    subject = Scheduler(nodes, [model("m", 12), model("other", 4)], many_devices=many_devices)
    subject.queued("p", "m", 0.0)
    for now, expected, elsewhere in ((0.0, "a", True), (1.0, "b", False)):
        (decided,) = subject.decide(now)
        assert isinstance(decided, Load)
        assert decided.devices == (f"{expected}/cuda:0",)
        assert subject.avoid_node("m", expected, now) is elsewhere
        subject.lost("m", now, "its disk is full")
    assert subject.decide(2.0) == []
    load(subject, "other", now=2.0)  # only this model is not loaded there
    assert subject.decide(9.5) == []
    (decided,) = subject.decide(10.9)  # 10 s after the failure on node a
    assert isinstance(decided, Load)
    assert decided.devices == ("a/cuda:0",)
    subject.loaded("m", 11.0, LEVELS)
    assert subject.avoid_node("m", "a", 11.0)  # the failures are counted again: 10 s


def test_a_node_that_joined_again_is_not_avoided() -> None:
    subject = Scheduler([*node("a", 24), *node("b", 8)], [model("m", 12)])
    subject.queued("p", "m", 0.0)
    subject.decide(0.0)
    assert not subject.avoid_node("m", "a", 0.0)
    subject.lost("m", 0.0, "its disk is full")
    subject.remove_devices("a")
    subject.add_devices(node("a", 24))
    assert [type(each) for each in subject.decide(1.0)] == [Load]


# -- devices that come ----------------------------------------------------------------------------------


def test_a_model_is_loaded_on_a_node_that_has_joined() -> None:
    subject = Scheduler(node("a", 4), [model("m/m", 6)])
    subject.queued("p", "m/m", 0.0)
    assert subject.decide(0.0) == []
    subject.add_devices(node("b", 10))
    assert subject.decide(1.0) == [Load("m/m", ("b/cuda:0",), 6 * GIB, may_sleep=False)]
    assert subject.capacities == {"a/cuda:0": 4 * GIB, "b/cuda:0": 10 * GIB}


def test_a_device_is_added_once() -> None:
    subject = Scheduler(node("a", 4), [])
    with pytest.raises(ValueError, match="a/cuda:0 exists already"):
        subject.add_devices(node("a", 4))


# -- models on one node ---------------------------------------------------------------------------------


def test_a_model_with_several_devices_has_them_on_one_node() -> None:
    subject = Scheduler([*node("a", 10), *node("b", 10, 8)], [model("m/m", 8, devices=2)])
    subject.queued("p", "m/m", 0.0)
    assert subject.decide(0.0) == [Load("m/m", ("b/cuda:0", "b/cuda:1"), 8 * GIB, may_sleep=False)]


def test_a_model_that_needs_more_devices_than_any_node_has_is_refused() -> None:
    subject = Scheduler([*node("a", 10), *node("b", 10)], [model("m/m", 8, devices=2)])
    with pytest.raises(ModelTooLarge, match=r"needs 8\.0 GiB on each of 2 devices"):
        subject.check_fits("m/m")
    assert not subject.footprints.of("m/m").fits
    assert not subject.fits_now("m/m")
    subject.queued("p", "m/m", 0.0)
    assert subject.decide(0.0) == []


def test_a_model_is_loaded_only_on_its_nodes() -> None:
    subject = Scheduler([*node("a", 10), *node("b", 80)], [model("m/m", nodes=frozenset({"a"}))])
    subject.queued("p", "m/m", 0.0)
    assert subject.decide(0.0) == [Load("m/m", ("a/cuda:0",), 6 * GIB, may_sleep=False)]


def test_a_model_whose_nodes_are_no_members_is_refused_with_their_names() -> None:
    subject = Scheduler(node("a", 10), [model("m/m", nodes=frozenset({"b"}))])
    with pytest.raises(ModelTooLarge, match="may only be on node b"):
        subject.check_fits("m/m")


def test_the_weights_of_a_sleeping_model_are_in_the_main_memory_of_its_node() -> None:
    devices = [*node("a", 10, main=20), *node("b", 10, main=20)]
    subject = Scheduler(devices, [sleeper("m/m", idle_unload_after=60.0, nodes=frozenset({"b"}))])
    load(subject, "m/m")
    put_to_sleep(subject, "m/m", 31.0)
    assert subject.reserved("b/cpu") == {"m/m": 6 * GIB}
    assert subject.reserved("a/cpu") == {}
    subject.queued("p", "m/m", 32.0)
    assert finish(subject, subject.decide(32.0), 32.0) == [Wake("m/m")]
    assert subject.reserved("b/cpu") == {}


def test_a_sleeping_model_is_not_unloaded_for_one_that_falls_asleep_on_another_node() -> None:
    devices = [*node("a", 10, main=6), *node("b", 10, main=6)]
    demands = [sleeper(name, nodes=frozenset({name[0]}), idle_unload_after=60.0) for name in ("a/m", "b/m")]
    subject = Scheduler(devices, demands)
    load(subject, "a/m", "b/m")
    finish(subject, subject.decide(31.0), 31.0)
    assert [subject.residency(name) for name in ("a/m", "b/m")] == [Residency.ASLEEP, Residency.ASLEEP]


def test_instances_are_spread_over_nodes() -> None:
    names = ["m/m", "m/m#2", "m/m#3"]
    devices = [*node("a", 40, 40, 40), *node("b", 20), *node("c", 10)]
    subject = Scheduler(devices, [model(name) for name in names])
    subject.set_instances(names, 3)
    load(subject, *names)
    assert [subject.devices(name) for name in names] == [("a/cuda:0",), ("b/cuda:0",), ("c/cuda:0",)]


# -- nodes that are gone --------------------------------------------------------------------------------


def in_state(state: Residency) -> Scheduler:
    """Node b with the model ``m/m`` in this state, a prediction of it, and an empty node a."""
    subject = Scheduler(
        [*node("a", 10, main=20), *node("b", 10, main=20)], [sleeper("m/m", idle_unload_after=60.0)]
    )
    subject.drain_node("a")
    subject.request_load("m/m")
    loads = subject.decide(0.0)
    assert loads == [Load("m/m", ("b/cuda:0",), 6 * GIB, may_sleep=True)]
    if state is not Residency.LOADING:
        subject.loaded("m/m", 0.0, LEVELS)
    if state in {Residency.READY, Residency.DRAINING}:
        subject.queued("running", "m/m", 1.0)
        assert len(subject.decide(1.0)) == 1
    if state is Residency.DRAINING:
        subject.request_unload("m/m", "asked for", 1.0)
    if state is Residency.UNLOADING:
        subject.request_unload("m/m", "asked for", 1.0)
        subject.decide(1.0)
    if state in {Residency.FALLING_ASLEEP, Residency.ASLEEP, Residency.WAKING}:
        assert [type(each) for each in subject.decide(31.0)] == [Sleep]
    if state in {Residency.ASLEEP, Residency.WAKING}:
        subject.asleep("m/m", 32.0)
    subject.queued("waiting", "m/m", 33.0)
    if state is Residency.WAKING:
        assert subject.decide(33.0) == [Wake("m/m")]
    assert subject.residency("m/m") is state
    subject.undrain_node("a")
    return subject


@pytest.mark.parametrize("state", [state for state in Residency if state is not Residency.COLD])
def test_a_model_of_a_removed_node_is_cold_after_it_is_reported_lost_in_every_state(state: Residency) -> None:
    subject = in_state(state)
    assert subject.remove_devices("b") == ["m/m"]
    assert list(subject.capacities) == ["a/cuda:0", "a/cpu"]
    assert subject.decide(100.0) == []  # nothing is decided about a model whose worker process is gone
    with pytest.raises(ValueError, match="report its models lost"):
        subject.add_devices(node("b", 10))
    subject.lost("m/m", 101.0, "node b is gone")
    again = subject.decide(101.0)
    assert again == [Load("m/m", ("a/cuda:0",), 6 * GIB, may_sleep=True)]
    subject.loaded("m/m", 102.0, LEVELS)
    assert Start("waiting", "m/m", ("a/cuda:0",), cold_start=1.0) in subject.decide(102.0)
    subject.add_devices(node("b", 10, main=20))
    assert subject.free("b/cuda:0") == 10 * GIB
    assert subject.free("b/cpu") == 20 * GIB


@pytest.mark.parametrize("state", [Residency.LOADING, Residency.UNLOADING, Residency.FALLING_ASLEEP])
def test_a_load_or_unload_may_end_after_the_removal_of_its_node(state: Residency) -> None:
    subject = in_state(state)
    subject.remove_devices("b")
    if state is Residency.LOADING:
        subject.loaded("m/m", 100.0, LEVELS)
        assert subject.decide(100.0) == []  # no prediction starts there
        subject.lost("m/m", 101.0, "node b is gone")
    elif state is Residency.UNLOADING:
        subject.unloaded("m/m", 100.0)
    else:
        subject.asleep("m/m", 100.0)
        assert subject.decide(100.0) == []
        subject.lost("m/m", 101.0, "node b is gone")
    assert subject.decide(102.0) == [Load("m/m", ("a/cuda:0",), 6 * GIB, may_sleep=True)]


def test_a_node_without_models_is_removed_at_once() -> None:
    subject = Scheduler([*node("a", 10), *node("b", 10)], [])
    assert subject.remove_devices("b") == []
    subject.add_devices(node("b", 20))
    assert subject.capacities == {"a/cuda:0": 10 * GIB, "b/cuda:0": 20 * GIB}


def test_a_node_that_is_not_known_is_removed_without_effect() -> None:
    subject = Scheduler(node("a", 10), [])
    assert subject.remove_devices("b") == []
    assert list(subject.capacities) == ["a/cuda:0"]


def test_a_measurement_of_a_removed_device_is_ignored() -> None:
    subject = Scheduler([*node("a", 10), *node("b", 10)], [])
    subject.remove_devices("b")
    subject.device_used("b/cuda:0", 5 * GIB, 1.0)
    assert [each.kind for each in subject.events()] == []


def test_a_waiting_model_no_longer_claims_devices_of_a_removed_node() -> None:
    """Model ``w/w`` has waited long, and busy models are drained for it on a node that is lost then."""
    subject = Scheduler(
        [*node("a", 10), *node("b", 12)], [model("x/x", 10), model("y/y", 10), model("w/w", 10)]
    )
    load(subject, "x/x", "y/y")
    for name in ("x/x", "y/y"):
        subject.queued(f"long {name}", name, 0.0)
    subject.decide(0.0)
    subject.queued("p", "w/w", 10.0)
    subject.decide(100.0)
    (claimed,) = [entry.claimed_devices for entry in subject.load_queue(100.0) if entry.model == "w/w"]
    lost = claimed[0].split("/")[0]
    other = {"a": "b", "b": "a"}[lost]
    for name in subject.remove_devices(lost):
        subject.lost(name, 101.0, "its node is gone")
    subject.decide(101.0)
    (claimed,) = [entry.claimed_devices for entry in subject.load_queue(101.0) if entry.model == "w/w"]
    assert claimed == (f"{other}/cuda:0",)


def test_a_measured_size_is_not_lowered_because_the_only_large_node_is_gone() -> None:
    demand = Demand(model="m/m", memory=20 * GIB, concurrency=1, origin=Origin.ESTIMATED)
    subject = Scheduler([*node("a", 10), *node("b", 80)], [demand])
    load(subject, "m/m")
    subject.footprints.record_peak("m/m", 40 * GIB, 1.0)
    subject.remove_devices("b")
    subject.lost("m/m", 2.0, "node b is gone")
    assert (subject.demand("m/m").memory or 0) >= 40 * GIB
    subject.queued("p", "m/m", 3.0)
    assert subject.decide(3.0) == []


# -- nodes that are drained -----------------------------------------------------------------------------


def test_nothing_is_loaded_or_woken_on_a_draining_node() -> None:
    subject = Scheduler(
        [*node("a", 4, main=20), *node("b", 10, main=20)],
        [sleeper("m/m", idle_unload_after=60.0), model("n/n")],
    )
    load(subject, "m/m")
    put_to_sleep(subject, "m/m", 31.0)
    subject.drain_node("b")
    subject.queued("p", "m/m", 32.0)
    subject.queued("q", "n/n", 32.0)
    assert subject.decide(32.0) == [Unload("m/m", "node b is draining", ("b/cuda:0",), 0)]
    subject.unloaded("m/m", 33.0)
    assert subject.decide(33.0) == []
    assert not subject.fits_now("n/n")
    subject.check_fits("n/n")  # it fits when the node is schedulable again
    subject.undrain_node("b")
    assert [each.model for each in subject.decide(34.0) if isinstance(each, Load)] == ["m/m"]


def test_models_are_unloaded_from_a_draining_node_when_their_predictions_finish_and_loaded_elsewhere() -> (
    None
):
    subject = Scheduler([*node("a", 10), *node("b", 20)], [model("m/m", concurrency=1)])
    load(subject, "m/m")
    subject.queued("running", "m/m", 1.0)
    assert subject.decide(1.0) == [Start("running", "m/m", ("b/cuda:0",))]
    subject.drain_node("b")
    subject.queued("waiting", "m/m", 2.0)
    assert subject.decide(2.0) == []
    assert subject.models_on_node("b").staying == {"m/m": "1 prediction is running"}
    subject.finished("running", "m/m", 3.0)
    assert subject.decide(3.0) == [Unload("m/m", "node b is draining", ("b/cuda:0",), 0)]
    subject.unloaded("m/m", 4.0)
    assert subject.decide(4.0) == [Load("m/m", ("a/cuda:0",), 6 * GIB, may_sleep=False)]
    assert subject.models_on_node("b") == (True, (), {})


def test_a_model_that_is_being_loaded_on_a_draining_node_is_unloaded_afterwards() -> None:
    subject = Scheduler([*node("a", 10), *node("b", 20)], [model("m/m")])
    subject.queued("p", "m/m", 0.0)
    assert subject.decide(0.0) == [Load("m/m", ("b/cuda:0",), 6 * GIB, may_sleep=False)]
    subject.drain_node("b")
    assert subject.decide(1.0) == []
    subject.loaded("m/m", 2.0, ())
    assert subject.decide(2.0) == [Start("p", "m/m", ("b/cuda:0",), cold_start=2.0)]
    subject.finished("p", "m/m", 3.0)
    assert subject.decide(3.0) == [Unload("m/m", "node b is draining", ("b/cuda:0",), 0)]


def test_a_pinned_model_moves_to_another_node() -> None:
    subject = Scheduler([*node("a", 10), *node("b", 20)], [model("m/m", pin=True)])
    finish(subject, subject.decide(0.0), 0.0)
    assert subject.devices("m/m") == ("b/cuda:0",)
    subject.drain_node("b")
    assert finish(subject, subject.decide(1.0), 1.0) == [
        Unload("m/m", "node b is draining", ("b/cuda:0",), 0)
    ]
    assert subject.decide(2.0) == [Load("m/m", ("a/cuda:0",), 6 * GIB, may_sleep=False)]


def test_a_pinned_model_that_fits_on_no_other_node_stays_and_says_why() -> None:
    subject = Scheduler([*node("a", 4), *node("b", 20)], [model("m/m", pin=True)])
    finish(subject, subject.decide(0.0), 0.0)
    subject.drain_node("b")
    subject.queued("p", "m/m", 1.0)
    assert subject.decide(1.0) == [Start("p", "m/m", ("b/cuda:0",))]
    reason = "pinned, and no other node has the memory: 2.0 GiB are missing"
    assert subject.models_on_node("b") == (True, ("m/m",), {"m/m": reason})
    subject.add_devices(node("c", 10))
    subject.finished("p", "m/m", 2.0)
    assert [type(each) for each in finish(subject, subject.decide(2.0), 2.0)] == [Unload]
    assert subject.decide(3.0) == [Load("m/m", ("c/cuda:0",), 6 * GIB, may_sleep=False)]


def test_pinned_models_move_one_after_the_other_and_the_last_stays_if_it_does_not_fit() -> None:
    subject = Scheduler([*node("a", 10), *node("b", 20)], [model("m/m", pin=True), model("n/n", pin=True)])
    subject.drain_node("a")
    for now in (0.0, 1.0):
        finish(subject, subject.decide(now), now)
    subject.undrain_node("a")
    assert subject.models_on_node("b").models == ("m/m", "n/n")
    subject.drain_node("b")
    assert [type(each) for each in subject.decide(2.0)] == [Unload]
    (moved,) = [name for name in ("m/m", "n/n") if subject.residency(name) is Residency.UNLOADING]
    (other,) = {"m/m", "n/n"} - {moved}
    reason = f"pinned, and waits until {moved} is loaded on another node"
    assert subject.models_on_node("b").staying == {moved: "it is unloading", other: reason}
    subject.unloaded(moved, 3.0)
    finish(subject, subject.decide(3.0), 3.0)
    assert subject.devices(moved) == ("a/cuda:0",)
    assert subject.decide(4.0) == []
    assert subject.devices(other) == ("b/cuda:0",)
    assert subject.models_on_node("b").staying == {
        other: "pinned, and no other node has the memory: 2.0 GiB are missing"
    }


def test_a_pinned_model_that_sleeps_is_loaded_on_another_node() -> None:
    subject = Scheduler([*node("a", 10, main=50), *node("b", 20, main=50)], [sleeper("m/m")])
    subject.adopted("m/m", ("b/cuda:0",), 6 * GIB, 0.0, levels=LEVELS, level=SleepLevel.KEPT)
    subject.pin("m/m", pinned=True)
    subject.drain_node("b")
    for now in (1.0, 2.0):
        finish(subject, subject.decide(now), now)
    assert subject.devices("m/m") == ("a/cuda:0",)


def test_a_pinned_model_that_sleeps_and_fits_on_no_other_node_stays() -> None:
    subject = Scheduler([*node("a", 4, main=50), *node("b", 20, main=50)], [sleeper("m/m")])
    subject.adopted("m/m", ("b/cuda:0",), 6 * GIB, 0.0, levels=LEVELS, level=SleepLevel.KEPT)
    subject.pin("m/m", pinned=True)
    subject.drain_node("b")
    assert subject.decide(1.0) == []
    reason = "pinned, and no other node has the memory: 2.0 GiB are missing"
    assert subject.models_on_node("b").staying == {"m/m": reason}


def test_pinned_models_do_not_wait_for_one_whose_load_fails() -> None:
    names = ("m/m", "n/n", "o/o")
    subject = Scheduler([*node("a", 10, 10, 10), *node("b", 10, 10, 10)], [model(each) for each in names])
    for number, name in enumerate(names):
        subject.adopted(name, (f"a/cuda:{number}",), 6 * GIB, 0.0, levels=(), level=None)
        subject.pin(name, pinned=True)
    subject.drain_node("a")
    failing = None
    for now in range(1, 10):
        for each in subject.decide(now):
            if isinstance(each, Unload):
                failing = failing or each.model
                subject.unloaded(each.model, now)
            elif isinstance(each, Load) and each.model == failing:
                subject.load_failed(each.model, now, "no weights")
            elif isinstance(each, Load):
                subject.loaded(each.model, now, ())
    others = set(names) - {failing}
    assert {subject.devices(name)[0].split("/")[0] for name in others} == {"b"}


# -- models that fit nowhere ----------------------------------------------------------------------------


def test_a_waiting_model_that_fits_nowhere_is_reported_with_the_missing_bytes() -> None:
    subject = Scheduler([*node("a", 10), *node("b", 10, 10)], [model("m/m", 16), model("n/n", 4)])
    subject.queued("p", "m/m", 0.0)
    subject.queued("q", "m/m", 0.0)
    subject.queued("r", "n/n", 0.0)
    (found,) = subject.unplaceable_models(1.0)
    assert found[:5] == ("m/m", 2, 1, 16 * GIB, 6 * GIB)
    assert found.reason == "6.0 GiB are missing: add a node with more memory on its devices"


@pytest.mark.parametrize(
    ("demand", "reason"),
    [
        (model("m/m", 6, devices=3), "it needs 3 devices of one node"),
        (model("m/m", 6, nodes=frozenset({"c"})), "no schedulable node may hold it"),
        (
            model("m/m", 60),
            r"it fits only on a draining node \(d\): use the node again with `appliance drain",
        ),
        (Demand(model="m/m", share=1.0, concurrency=1, devices=3), "it needs 3 devices of one node"),
    ],
)
def test_the_reason_why_a_model_fits_nowhere_is_given(demand: Demand, reason: str) -> None:
    subject = Scheduler([*node("a", 10), *node("b", 10, 10), *node("d", 80)], [demand])
    subject.drain_node("d")
    subject.queued("p", "m/m", 0.0)
    (found,) = subject.unplaceable_models(1.0)
    assert re.match(reason, found.reason), found.reason


def test_a_child_of_a_parent_waits_for_a_draining_node_but_not_for_a_removed_one() -> None:
    demands = [model("p/p", 4), model("c/c", 8)]
    subject = Scheduler([*node("a", 4), *node("b", 10)], demands)
    subject.drain_node("b")
    subject.queued("parent", "p/p", 0.0)
    finish(subject, subject.decide(0.0), 0.0)
    subject.decide(0.0)
    subject.queued("child", "c/c", 1.0, parent="parent")
    assert subject.decide(1.0) == []
    subject.remove_devices("b")
    (refused,) = subject.decide(2.0)
    assert "could never start" in refused.reason  # type: ignore[union-attr]
