"""Properties of the scheduler with several nodes, for any predictions and any changes of the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.scheduler import Capacity, Decision, Load, Residency, Start, Wake
from appliance.scheduler.backlog import MANY_DEVICES
from tests.support.scheduler_world import GIB, LOAD, RUN, UNLOAD, World

HEAD = "head"  # is never lost, and has two devices
OTHERS = ("n1", "n2", "n3")
NodeEvent = tuple[float, str, str]  # when, what, node


class ClusterWorld(World):
    """A ``World`` with nodes that are drained, are lost and join again."""

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        events: Sequence[NodeEvent],
        *,
        sleeping: bool,
        many_devices: int,
        several: bool,
    ) -> None:
        """With ``several``, some models are on two or three nodes."""
        self.members = {HEAD, *OTHERS}
        self.draining: set[str] = set()
        self.leaving: set[str] = set()  # models on nodes that were drained while the models were there
        self.node_events = sorted(events)
        super().__init__(sizes, 2, seed, failing=True, sleeping=sleeping, main=12, many_devices=many_devices)
        for name in self.names:
            demand = self.subject.demand(name)
            if not demand.on_cpu and self.random.random() < 0.2:
                self.subject.update(msgspec.structs.replace(demand, devices=2), 0.0, replace=True)
            elif several and self.random.random() < 0.5:
                self.make_several(name)

    def make_several(self, name: str) -> None:
        """Let the model need several nodes, which cannot sleep."""
        demand = self.subject.demand(name)
        machines = self.random.choice([2, 3])
        devices = 1 if demand.on_cpu else self.random.choice([1, 1, 2])
        demand = msgspec.structs.replace(demand, machines=machines, devices=devices, sleep_footprint=None)
        self.subject.update(demand, 0.0, replace=True)

    def capacities(self, devices: int) -> list[Capacity]:
        return [each for node in sorted(self.members) for each in self.devices_of(node)]

    def devices_of(self, node: str) -> list[Capacity]:
        count = {HEAD: 2, "n1": 2, "n2": 1, "n3": 3}[node]
        gpus = [Capacity(f"{node}/gpu{number}", 10 * GIB, node=node) for number in range(count)]
        memory = [Capacity(f"{node}/ram", self.main * GIB, is_main_memory=True, node=node)]
        return gpus + (memory if self.sleeping else [])

    def advance(self) -> None:
        before = self.node_events[:1]
        super().advance()
        if before and (before[0][0] <= self.now or self.is_stuck()):
            self.now = max(self.now, before[0][0])
            self.change(*self.node_events.pop(0)[1:])

    def is_stuck(self) -> bool:
        """Whether nothing happens before the next node event."""
        return not self.events and not self.arrivals

    def change(self, what: str, node: str) -> None:
        match what:
            case "drain" if node in self.members:
                self.subject.drain_node(node)
                self.draining.add(node)
            case "undrain" if node in self.draining:
                self.subject.undrain_node(node)
                self.draining.discard(node)
            case "lose" if node != HEAD and node in self.members:
                self.lose(node)
            case "lose all":
                self.lose(*(each for each in OTHERS if each in self.members))
            case "join" if node not in self.members:
                self.members.add(node)
                self.subject.add_devices(self.devices_of(node))

    def lose(self, *nodes: str) -> None:
        lost: list[str] = []
        for node in nodes:
            self.members.discard(node)
            self.draining.discard(node)
            lost += self.subject.remove_devices(node)
        there = [name for name, place in self.place.items() if self.nodes_of(place) & set(nodes)]
        assert sorted(lost) == sorted(there)
        for decision in self.subject.decide(self.now):  # before the engine has reported the models
            assert getattr(decision, "model", None) not in lost
            self.carry_out(decision)
        for model in lost:
            again = sorted(self.subject.running(model))
            self.events = [each for each in self.events if each[2] != model]
            self.busy.pop(model, None)
            self.fell.pop(model, None)
            self.gone("lose", model)
            for id in again:
                self.begun[model].remove(id)
                self.subject.queued(id, model, self.now, front=True)

    def nodes_of(self, place: Sequence[str]) -> set[str]:
        return {device.split("/")[0] for device in place}

    def leave(self, model: str) -> None:
        """Check an unload. On a draining node, the minimum residency of models does not apply."""
        assert not self.subject.running(model)
        assert model not in self.busy
        if model not in self.leaving:
            super().leave(model)

    def gone(self, what: str, model: str) -> None:
        super().gone(what, model)
        self.leaving.discard(model)

    def step(self) -> None:
        self.leaving |= {name for name, place in self.place.items() if self.nodes_of(place) & self.draining}
        super().step()

    def carry_out(self, decision: Decision) -> None:
        super().carry_out(decision)
        if isinstance(decision, Load | Wake):
            place = self.place[decision.model]
            assert self.nodes_of(place) <= self.members, "a load on a node that is gone"
            assert not self.nodes_of(place) & self.draining, "a load on a draining node"
            demand = self.subject.demand(decision.model)
            found = [[*devices] for _, devices in groupby(place, lambda device: device.split("/")[0])]
            assert len(found) == len(self.nodes_of(place)) == demand.machines, "grouped by node"
            assert all(each == sorted(set(each)) and len(each) == demand.devices for each in found)
        if isinstance(decision, Start):
            assert self.nodes_of(self.place[decision.model]) <= self.members

    def check(self) -> None:
        held: dict[str, int] = dict.fromkeys((each.device for each in self.capacities(0)), 0)
        for model, place in self.place.items():
            for device in place:
                held[device] += self.holds[model]
            if self.keeps.get(model):
                (node,) = self.nodes_of(place)
                held[f"{node}/ram"] += self.keeps[model]
        for capacity in self.capacities(0):
            assert held[capacity.device] <= capacity.memory, f"{capacity.device} is over its capacity"
        assert self.subject.capacities.keys() == held.keys()
        self.check_reservations()

    def check_reservations(self) -> None:
        """A model has memory on all of its devices or on none, and none on a node that is gone."""
        found: dict[str, set[str]] = {name: set() for name in self.names}
        for device in self.subject.capacities:
            for name in self.subject.reserved(device):
                found[name].add(device)
        for name, devices in found.items():
            place = set(self.place.get(name, ()))
            assert place <= devices <= place | {f"{node}/ram" for node in self.nodes_of([*place])}
            assert bool(place) is (self.subject.residency(name) is not Residency.COLD)


EVENTS = st.lists(
    st.tuples(
        st.floats(0, 90),
        st.sampled_from(["drain", "undrain", "lose", "lose all", "join"]),
        st.sampled_from([HEAD, *OTHERS]),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=12),
    arrivals=st.lists(st.tuples(st.integers(0, 11), st.floats(0, 90)), max_size=50),
    events=EVENTS,
    seed=st.integers(0, 2**32),
    sleeping=st.booleans(),
    many_devices=st.sampled_from([0, 6, MANY_DEVICES]),
    several=st.booleans(),
)
def test_no_node_is_overbooked_and_everything_queued_on_a_live_cluster_finally_ends(
    sizes: list[int],
    arrivals: list[tuple[int, float]],
    events: list[NodeEvent],
    seed: int,
    *,
    sleeping: bool,
    many_devices: int,
    several: bool,
) -> None:
    """A model on several nodes ends only if nodes join again; all other models fit on the head."""
    live = [(100.0, what, node) for what in ("undrain", *["join"] * several) for node in (HEAD, *OTHERS)]
    events = [*events, *live]
    world = ClusterWorld(sizes, seed, events, sleeping=sleeping, many_devices=many_devices, several=several)
    for number, (which, at) in enumerate(arrivals):
        world.arrive(at, f"p{number}", world.names[which % len(sizes)])
    world.run(4000)
    assert len(world.ended) == len(arrivals)


class TwoNodes(World):
    """Two nodes with one device each. The last model is on both."""

    def __init__(self, sizes: Sequence[int], seed: int, *, many_devices: int) -> None:
        super().__init__(sizes, 2, seed, many_devices=many_devices)
        demand = self.subject.demand(self.names[-1])
        self.subject.update(msgspec.structs.replace(demand, machines=2), 0.0, replace=True)

    def capacities(self, devices: int) -> list[Capacity]:
        return [Capacity(f"n{number}/gpu", 10 * GIB, node=f"n{number}") for number in range(devices)]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=2, max_size=10),
    seed=st.integers(0, 2**32),
    many_devices=st.sampled_from([0, MANY_DEVICES]),
)
def test_a_model_on_two_nodes_does_not_wait_for_ever_while_others_are_asked_all_the_time(
    sizes: list[int], seed: int, *, many_devices: int
) -> None:
    """As in ``test_residency_properties``: each model has two turns before the last one at most."""
    world = TwoNodes(sizes, seed, many_devices=many_devices)
    for second in range(600):
        for name in world.names[:-1]:
            world.arrive(float(second), f"{name}@{second}", name)
    world.arrive(20.0, "last", world.names[-1])
    turn = 3 * LOAD + 2 * LOAD + RUN + UNLOAD + LOAD
    world.arrivals.sort()
    while "last" not in world.waits:
        assert world.now < 20.0 + 2 * turn * len(sizes)
        world.step()
        world.advance()
