"""Nodes outside of the private network hold no part of a model on several machines."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.domain.errors import ModelTooLarge
from appliance.scheduler import Capacity, Demand, Load, Scheduler

GIB = 1024**3


def node(name: str, *, may_hold_parts: bool = True, gpus: int = 1) -> list[Capacity]:
    return [
        Capacity(f"{name}/cuda:{n}", 10 * GIB, node=name, may_hold_parts=may_hold_parts) for n in range(gpus)
    ]


def parallel(**options: Any) -> Demand:
    given = {"model": "m/m", "memory": 6 * GIB, "machines": 2, **options}
    return Demand(concurrency=1, **given)


@pytest.mark.parametrize("gpus", [1, 2])
def test_only_models_on_one_machine_use_a_node_outside_of_the_private_network(gpus: int) -> None:
    nodes = [*node("a", gpus=gpus), *node("b", gpus=gpus), *node("out", may_hold_parts=False, gpus=gpus)]
    subject = Scheduler(nodes, [parallel(devices=gpus), parallel(model="n/n", machines=1)])
    assert {each.split("/")[0] for each in subject.footprints.of("m/m").devices} == {"a", "b"}
    assert {each.split("/")[0] for each in subject.footprints.of("n/n").devices} == {"a", "b", "out"}


def test_the_error_about_too_few_machines_names_the_nodes() -> None:
    subject = Scheduler([*node("a"), *node("x", may_hold_parts=False)], [parallel()])
    with pytest.raises(ModelTooLarge, match=r"Outside of cluster\.private_network, and so not used: x$"):
        subject.check_fits("m/m")


def test_no_part_is_loaded_on_a_node_outside_of_the_private_network() -> None:
    nodes = [*node("out", may_hold_parts=False), *node("a"), *node("b")]
    subject = Scheduler(nodes, [parallel()])
    subject.queued("p", "m/m", 0.0)
    (decision,) = subject.decide(0.0)
    assert isinstance(decision, Load)
    assert sorted(decision.devices) == ["a/cuda:0", "b/cuda:0"]


def test_the_reason_why_a_model_fits_nowhere_names_the_nodes() -> None:
    subject = Scheduler(
        [*node("a"), *node("x", may_hold_parts=False), *node("y", may_hold_parts=False)],
        [parallel(memory=11 * GIB), parallel(model="n/n", memory=11 * GIB, machines=1)],
    )
    for name in ("m/m", "n/n"):
        subject.queued(f"of {name}", name, 0.0)
    found = {each.model: each.reason for each in subject.unplaceable_models(1.0)}
    assert found["m/m"].endswith(". Outside of cluster.private_network, and so not used: x, y")
    assert "private_network" not in found["n/n"]
