"""The hardware that models run on, of this machine or of the nodes that will join."""

from __future__ import annotations

import pytest

from appliance.config import ClusterConfig, HardwareConfig, ModelConfig
from appliance.machine import Device, discover, on_node
from appliance.machine.hardware import Hardware, hardware, runs_nowhere

GPU = Device(name="cuda:0", kind="cuda", memory=5, label="a GPU")
CPU = Device(name="cpu", kind="cpu", memory=7, label="a CPU")
MAIN = Device(name="cpu", kind="cpu", memory=7, label="a CPU", is_main_memory=True)


def test_a_machine_that_runs_models_has_the_hardware_of_its_devices() -> None:
    cluster = ClusterConfig(address="192.0.2.1", devices="gpu")
    assert hardware((CPU,), None) == Hardware(kind="cpu", with_host_memory=False)
    assert hardware((GPU, MAIN), None) == Hardware(kind="cuda", with_host_memory=True)
    assert hardware(on_node((CPU,), "head"), cluster, "head") == Hardware(
        kind="cpu", with_host_memory=False, node="head"
    )


def test_a_head_without_devices_has_the_hardware_that_the_config_declares() -> None:
    assert discover(HardwareConfig(devices="none")) == ()
    gpus, cpus = ClusterConfig(address="192.0.2.1"), ClusterConfig(address="192.0.2.1", devices="cpu")
    assert hardware((), gpus, "head") == Hardware(
        kind="cuda", with_host_memory=True, node="head", runs_models=False
    )
    assert hardware((), cpus, "head") == Hardware(
        kind="cpu", with_host_memory=False, node="head", runs_models=False
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"kind": "echo"}, None),
        ({"kind": "cog", "source": {"path": "/project"}}, "Cog project"),
        ({"kind": "echo", "environment": {"requirements": ["cowsay"]}}, "environment of its own"),
    ],
)
def test_models_that_run_only_on_the_head_run_nowhere_if_it_runs_none(
    model: dict[str, object], reason: str | None
) -> None:
    config = ModelConfig.model_validate({"name": "a/a", **model})
    assert runs_nowhere(config, hardware((CPU,), None)) is None
    found = runs_nowhere(config, hardware((), ClusterConfig(address="192.0.2.1"), "head"))
    assert found == (
        None
        if reason is None
        else f"{reason}: it runs only on the head of the cluster, which runs no models (hardware.devices in "
        "models.yaml is none): remove it, or let the head run models (hardware.devices: auto)"
    )
