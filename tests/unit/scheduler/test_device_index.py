"""The devices that are compared for a load, if there are many devices."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

from appliance.scheduler import Capacity, Demand, Residency
from appliance.scheduler.device_index import DeviceIndex
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.locality import Locality
from appliance.scheduler.model import ModelState

GIB = 1024**3


class Cluster:
    """Nodes of 8 devices of 10 GiB."""

    def __init__(self, nodes: int) -> None:
        self.ledger = Ledger(
            [
                Capacity(f"n{node}/gpu{number}", 10 * GIB, node=f"n{node}")
                for node in range(nodes)
                for number in range(8)
            ]
        )
        self.models: dict[str, ModelState] = {}
        self.reserved_for_others = Counter[str]()
        self.locality = Locality(self.models, self.ledger)
        self.devices = DeviceIndex(self.ledger, self.locality)

    def model(self, name: str, gib: int, **options: Any) -> ModelState:
        self.models[name] = ModelState(Demand(model=name, memory=gib * GIB, concurrency=1, **options))
        return self.models[name]

    def ready(self, name: str, device: str, gib: int, *, running: bool = False) -> ModelState:
        entry = self.model(name, gib)
        entry.transition_to(Residency.READY, 0.0)
        self.ledger.reserve(entry, (device,), gib * GIB)
        if running:
            entry.running.add(f"p of {name}")
        return entry

    def fill(self, gib: int, *, running: bool) -> None:
        for device in self.ledger.capacities:
            self.ready(f"on {device}", device, gib, running=running)

    def candidates(self, model: ModelState, *, spare_busy: bool = True) -> list[str]:
        return self.devices.candidates(model, self.reserved_for_others, spare_busy=spare_busy)


def test_few_of_many_devices_are_compared_and_the_most_free_comes_first() -> None:
    cluster = Cluster(100)
    for device in cluster.ledger.capacities:
        if device != "n42/gpu3":
            cluster.ready(f"on {device}", device, 4)
    found = cluster.candidates(cluster.model("m/m", 5))
    assert found[0] == "n42/gpu3"
    assert len(found) < 10


def test_idle_models_are_evicted_on_devices_that_change_from_time_to_time() -> None:
    cluster = Cluster(100)
    cluster.fill(8, running=False)
    model = cluster.model("m/m", 5)
    found = [cluster.candidates(model) for _ in range(5)]
    assert all(8 < len(each) < 20 for each in found)
    assert len({device for each in found for device in each}) > 30


def test_devices_with_busy_models_are_candidates_only_if_busy_models_are_not_spared() -> None:
    cluster = Cluster(10)
    cluster.fill(8, running=True)
    model = cluster.model("m/m", 5)
    assert cluster.candidates(model) == []
    assert cluster.candidates(model, spare_busy=False)


def test_devices_of_nodes_with_the_weights_are_compared_too() -> None:
    cluster = Cluster(100)
    model = cluster.model("m/m", 5)
    cluster.locality.set_weights("m/m", GIB, ["n77"])
    assert {"n77/gpu0", "n77/gpu7"} < set(cluster.candidates(model))


def test_nodes_without_another_instance_are_compared_too() -> None:
    cluster = Cluster(3)
    for number in range(8):
        cluster.ready(f"small {number}", f"n1/gpu{number}", 1)
        cluster.ready(f"large {number}", f"n2/gpu{number}", 2)
    cluster.ready("m/m", "n0/gpu0", 5)
    cluster.locality.set_instances(["m/m", "m/m#2"])
    assert "n1/gpu7" in cluster.candidates(cluster.model("m/m#2", 5))


def test_a_model_with_several_devices_gets_all_devices_of_the_compared_nodes() -> None:
    cluster = Cluster(10)
    found = cluster.candidates(cluster.model("m/m", 5, devices=4))
    assert found[:8] == [f"{found[0].split('/')[0]}/gpu{number}" for number in range(8)]


def nodes_of(devices: list[str]) -> set[str]:
    return {device.split("/")[0] for device in devices}


def test_enough_free_nodes_are_compared_for_a_model_on_several_nodes() -> None:
    cluster = Cluster(100)
    for device in cluster.ledger.capacities:
        if device.split("/")[0] not in {"n7", "n8", "n9"}:
            cluster.ready(f"on {device}", device, 6)
    model = cluster.model("m/m", 5, devices=8, machines=3)
    assert nodes_of(cluster.candidates(model)) == {"n7", "n8", "n9"}
    assert len(nodes_of(cluster.candidates(cluster.model("n/n", 4, machines=6)))) >= 6


def test_a_free_node_is_compared_together_with_nodes_on_which_models_are_evicted() -> None:
    cluster = Cluster(100)
    for device in cluster.ledger.capacities:
        if device.split("/")[0] != "n7":
            cluster.ready(f"on {device}", device, 6)
    found = nodes_of(cluster.candidates(cluster.model("m/m", 5, machines=2)))
    assert "n7" in found
    assert 2 < len(found) < 10


def test_any_two_nodes_are_compared_together_from_time_to_time() -> None:
    cluster = Cluster(12)
    cluster.fill(8, running=False)
    model = cluster.model("m/m", 5, machines=2)
    found = [nodes_of(cluster.candidates(model)) for _ in range(300)]
    assert all(len(each) == 5 for each in found)
    pairs = {pair for each in found for pair in combinations(sorted(each), 2)}
    assert len(pairs) == 12 * 11 / 2


def test_only_schedulable_devices_of_nodes_that_may_hold_the_model_are_compared() -> None:
    cluster = Cluster(4)
    cluster.ledger.set_draining("n0", draining=True)
    cluster.ledger.remove("n1")
    nodes = {device.split("/")[0] for device in cluster.candidates(cluster.model("m/m", 5))}
    assert nodes <= {"n2", "n3"}
    found = cluster.candidates(cluster.model("n/n", 5, nodes=frozenset({"n0", "n3"})))
    assert found == [f"n3/gpu{number}" for number in range(8)]
    cluster.ledger.set_draining("n0", draining=False)
    assert len(cluster.candidates(cluster.model("o/o", 5, nodes=frozenset({"n0", "n3"})))) == 16


def test_a_share_of_a_device_is_compared_with_the_smallest_device() -> None:
    cluster = Cluster(2)
    cluster.fill(6, running=True)
    cluster.ledger.add([Capacity("n9/gpu0", 80 * GIB, node="n9")])
    model = ModelState(Demand(model="m/m", share=0.5, concurrency=1))
    assert cluster.candidates(model) == ["n9/gpu0"]


def test_nodes_with_too_few_devices_are_not_compared_for_a_model_with_several() -> None:
    cluster = Cluster(4)
    cluster.fill(8, running=False)
    cluster.ledger.add([Capacity(f"s{number}/gpu0", 10 * GIB, node=f"s{number}") for number in range(40)])
    found = cluster.candidates(cluster.model("m/m", 5, devices=2))
    assert {device.split("/")[0] for device in found} == {"n0", "n1", "n2", "n3"}


def test_devices_with_evictions_are_compared_if_the_free_memory_is_kept_for_others() -> None:
    cluster = Cluster(4)
    cluster.fill(8, running=False)
    cluster.ledger.add([Capacity("free/gpu0", 10 * GIB, node="free")])
    cluster.reserved_for_others["free/gpu0"] = 8 * GIB
    assert {device.split("/")[0] for device in cluster.candidates(cluster.model("m/m", 5))} > {"n0"}


def test_devices_with_evictions_are_compared_if_a_share_of_the_free_device_is_too_large() -> None:
    cluster = Cluster(4)
    cluster.fill(8, running=False)
    cluster.ledger.add([Capacity("large/gpu0", 80 * GIB, node="large")])
    cluster.ready("b/b", "large/gpu0", 50, running=True)
    model = ModelState(Demand(model="m/m", share=0.5, concurrency=1))
    assert {device.split("/")[0] for device in cluster.candidates(model)} > {"n0"}
