"""The simulator: that the machine holds every policy to what is possible, and that the comparison is fair."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from appliance.scheduler import Decision, Load, Start
from scripts.simulation.__main__ import main
from scripts.simulation.comparison import APPLIANCE, appliance_scheduler, compare, policies, quantile
from scripts.simulation.machine import Machine
from scripts.simulation.scale import ClusterSize, growth, measure, scheduler, workload
from scripts.simulation.workload import GIB, WORKLOADS, Workload, fleet


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_follows_from_its_seed(name: str) -> None:
    make = WORKLOADS[name]
    assert make(1, 60) == make(1, 60) != make(2, 60)
    requests = make(1, 60).requests
    assert all(0 <= before.at <= after.at for before, after in pairwise(requests))


@pytest.mark.parametrize(
    "make", [pytest.param(make, id=f"{policy} {layout}".strip()) for policy, layout, make in policies()]
)
@pytest.mark.parametrize("name", ["bursts", "alternating"])
def test_every_policy_serves_every_prediction(name: str, make: Any) -> None:
    world = WORKLOADS[name](7, 90)
    outcome = Machine(world, make(world)).run()
    assert len(outcome.waits) == len(world.requests) > 10
    assert min(outcome.waits) >= 0
    assert outcome.loads >= len({request.model for request in world.requests})
    assert outcome.hits <= len(world.requests) - outcome.loads / 2
    assert Machine(world, make(world)).run() == outcome


class Scripted:
    """Decides what it was told, whatever happens."""

    def __init__(self, *decisions: Decision) -> None:
        self.decisions = list(decisions)

    def tell(self, *_: object) -> None:
        """Nothing is learned."""

    queued = finished = loaded = unloaded = tell

    def decide(self, now: float) -> list[Decision]:
        said, self.decisions = self.decisions, []
        return said

    def next_wakeup(self, now: float) -> float | None:
        return None


@pytest.mark.parametrize(
    ("decisions", "complaint"),
    [
        (
            [Load("m00", ("gpu0",), 0, may_sleep=False), Load("m01", ("gpu0",), 0, may_sleep=False)],
            "two loads",
        ),
        ([Start("p0", "m00", ("gpu0",))], "not ready"),
        (
            [Load("m00", ("gpu0",), 0, may_sleep=False), Load("m00", ("gpu0",), 0, may_sleep=False)],
            "load of m00",
        ),
        ([], "wait for ever"),
    ],
)
def test_the_machine_does_not_do_what_cannot_be_done(decisions: list[Decision], complaint: str) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        Machine(WORKLOADS["duel"](1, 60), Scripted(*decisions)).run()


def test_waits_of_a_lone_prediction_are_those_of_its_load() -> None:
    world = WORKLOADS["duel"](1, 60)
    world = world._replace(requests=world.requests[:1])
    outcome = Machine(world, appliance_scheduler(world)).run()
    assert outcome.waits == [world.models[0].load_seconds]
    assert (outcome.hits, outcome.loads, outcome.moved) == (0, 1, 60 * GIB)


def test_quantiles() -> None:
    assert quantile([], 0.99) == 0.0
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert quantile([float(number) for number in range(100)], 0.99) == 99.0


def test_the_fleet_is_what_is_stated() -> None:
    models = fleet(random.Random(1), 20)
    assert (
        sorted(model.memory // GIB for model in models) == [4] * 6 + [8] * 5 + [16] * 4 + [24] * 3 + [40] * 2
    )


def test_the_appliance_is_ahead_where_two_models_fight_for_one_place() -> None:
    rows = compare(["duel"], range(2), 240, lambda: None)
    own = next(row for row in rows if row.policy == APPLIANCE)
    assert len(rows) == 4
    assert all(own.p99 < row.p99 and own.moved < row.moved for row in rows if row is not own)


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    code = main(["duel", "--seeds", "1", "--seconds", "120", "--histogram", "--json", str(report)])
    shown = capsys.readouterr().out
    for word in ("appliance", "llama-swap", "Ollama", "Ray Serve", "p99", "to 40 s"):
        assert word in shown
    found = json.loads(report.read_text())
    assert code == (1 if found["not_ahead"] else 0)
    assert {row["policy"] for row in found["rows"]} == {name for name, _, _ in policies()}
    with pytest.raises(SystemExit):
        main(["no-such-workload"])


def test_a_workload_without_requests_is_over_at_once() -> None:
    world = Workload("empty", WORKLOADS["duel"](1, 60).models, {"gpu0": 80 * GIB}, ())
    assert Machine(world, appliance_scheduler(world)).run().waits == []


def test_the_command_prints_the_times_of_decisions_from_size_to_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    sizes = ["--devices", "4", "32", "--nodes", "1", "4", "--models", "20", "--predictions", "4"]
    assert main([*sizes, "--json", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "growth" in shown
    rows = json.loads(report.read_text())["rows"]
    assert [row["size"] for row in rows] == [
        {"devices": 4, "nodes": 1, "models": 20, "on_two_nodes": 0},
        {"devices": 32, "nodes": 4, "models": 20, "on_two_nodes": 0},
    ]
    assert all(row["events"] > 0 and row["loads"] > 0 for row in rows)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--devices", "4", "--nodes", "8"],
        ["--devices", "4", "--nodes", "1", "2"],
        ["--devices", "0"],
        ["--devices", "4", "--predictions", "0"],
        ["--devices", "4", "--on-two-nodes", "10"],
        ["--devices", "4", "--nodes", "2", "--on-two-nodes", "101"],
    ],
)
def test_sizes_that_are_not_possible_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(wrong)


def test_a_cluster_is_simulated_without_overbooking_and_every_prediction_starts() -> None:
    """The simulated machine refuses what cannot be done: see above."""
    size = ClusterSize(devices=30, nodes=4, models=200)
    found = measure(size, 5, 1, lambda: None)
    assert found.loads > 30
    assert found.wait_p99 > 0
    assert growth([found, found]) == [None, 1.0]


@pytest.mark.parametrize("devices", [12, 30])
def test_a_cluster_with_models_on_two_nodes_is_simulated(devices: int) -> None:
    size = ClusterSize(devices, nodes=4, models=100, on_two_nodes=30)
    world = workload(size, 5, 1)
    assert sum(scheduler(size, world).demand(model.name).machines == 2 for model in world.models) == 30
    found = measure(size, 5, 1, lambda: None)
    assert found.loads > 20
    assert found.wait_p99 > 0
