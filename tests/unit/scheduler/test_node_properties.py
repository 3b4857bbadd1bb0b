"""Properties of the scheduler with several nodes, for any predictions and any changes of the nodes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.scheduler import Capacity, Decision, Load, Start, Wake
from appliance.scheduler.backlog import MANY_DEVICES
from tests.support.scheduler_world import GIB, World

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
    ) -> None:
        self.members = {HEAD, *OTHERS}
        self.draining: set[str] = set()
        self.leaving: set[str] = set()  # models on nodes that were drained while the models were there
        self.node_events = sorted(events)
        super().__init__(sizes, 2, seed, failing=True, sleeping=sleeping, main=12, many_devices=many_devices)
        for name in self.names:
            demand = self.subject.demand(name)
            if not demand.on_cpu and self.random.random() < 0.2:
                self.subject.update(msgspec.structs.replace(demand, devices=2), 0.0, replace=True)

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
            case "join" if node not in self.members:
                self.members.add(node)
                self.subject.add_devices(self.devices_of(node))

    def lose(self, node: str) -> None:
        self.members.discard(node)
        self.draining.discard(node)
        lost = self.subject.remove_devices(node)
        assert lost == sorted(name for name, place in self.place.items() if self.node_of(place) == node)
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

    def node_of(self, place: Sequence[str]) -> str:
        (node,) = {device.split("/")[0] for device in place}  # all on one node
        return node

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
        self.leaving |= {name for name, place in self.place.items() if self.node_of(place) in self.draining}
        super().step()

    def carry_out(self, decision: Decision) -> None:
        super().carry_out(decision)
        if isinstance(decision, Load | Wake):
            node = self.node_of(self.place[decision.model])
            assert node in self.members, "a load on a node that is gone"
            assert node not in self.draining, "a load on a draining node"
        if isinstance(decision, Start):
            assert self.node_of(self.place[decision.model]) in self.members

    def check(self) -> None:
        held: dict[str, int] = dict.fromkeys((each.device for each in self.capacities(0)), 0)
        for model, place in self.place.items():
            for device in place:
                held[device] += self.holds[model]
            if self.keeps.get(model):
                held[f"{self.node_of(place)}/ram"] += self.keeps[model]
        for capacity in self.capacities(0):
            assert held[capacity.device] <= capacity.memory, f"{capacity.device} is over its capacity"
        assert self.subject.capacities.keys() == held.keys()


EVENTS = st.lists(
    st.tuples(
        st.floats(0, 90),
        st.sampled_from(["drain", "undrain", "lose", "join"]),
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
)
def test_no_node_is_overbooked_and_everything_queued_on_a_live_cluster_finally_ends(
    sizes: list[int],
    arrivals: list[tuple[int, float]],
    events: list[NodeEvent],
    seed: int,
    *,
    sleeping: bool,
    many_devices: int,
) -> None:
    live = [(100.0, "undrain", node) for node in (HEAD, *OTHERS)]
    world = ClusterWorld(sizes, seed, [*events, *live], sleeping=sleeping, many_devices=many_devices)
    for number, (which, at) in enumerate(arrivals):
        world.arrive(at, f"p{number}", world.names[which % len(sizes)])
    world.run(4000)
    assert len(world.ended) == len(arrivals)
