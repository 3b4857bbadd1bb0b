"""What models ask of the machine: whether they can sleep there, and whose memory they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.config import ModelConfig
from appliance.gateway.catalogue.demands import capacities, demand, head_only, training_demand
from appliance.machine import Device, on_node
from appliance.scheduler import Capacity, Demand, SleepFootprint

MIB = 1024**2
GIB = 1024**3


GPU = Device(name="cuda:0", kind="cuda", memory=5, label="a GPU")
LOGICAL = Device(name="left", kind="cpu", memory=5, label="a CPU", logical=True)
MAIN = Device(name="cpu", kind="cpu", memory=7, label="a CPU", is_main_memory=True)


def asked(
    folder: Path, kind: str, *, cuda: bool = True, with_host_memory: bool = True, **keys: Any
) -> Demand:
    """Of a model with weights of a MiB."""
    weights = folder / "weights.safetensors"
    weights.write_bytes(bytes(MIB))
    source = {} if kind == "echo" else {"source": {"path": str(folder)}}
    model = ModelConfig.model_validate({"name": "a/a", "kind": kind, **source, **keys})
    devices = (GPU if cuda else LOGICAL, *([MAIN] if with_host_memory else []))
    return demand(model, folder, devices)


@pytest.mark.parametrize("kind", ["vllm", "diffusers", "embeddings", "transformers"])
def test_models_of_gpus_can_sleep_there_and_nowhere_else(tmp_path: Path, kind: str) -> None:
    keys: dict[str, Any] = {"options": {"task": "fill-mask"}} if kind == "transformers" else {}
    asleep = asked(tmp_path, kind, **keys).sleep_footprint
    assert asleep is not None
    assert GIB <= asleep.residue <= 2 * GIB
    assert MIB // 2 <= asleep.main_memory <= 2 * MIB
    assert asked(tmp_path, kind, cuda=False, **keys).sleep_footprint is None
    assert asked(tmp_path, kind, with_host_memory=False, **keys).sleep_footprint is None
    assert asked(tmp_path, kind, sleep="never", **keys).sleep_footprint is None


def test_a_pipeline_that_is_offloaded_does_not_sleep(tmp_path: Path) -> None:
    assert asked(tmp_path, "diffusers", options={"offload": "model"}).sleep_footprint is None


def test_what_computes_on_the_cpu_takes_main_memory_beside_gpus(tmp_path: Path) -> None:
    assert asked(tmp_path, "piper").on_cpu
    assert asked(tmp_path, "kokoro").on_cpu
    assert asked(tmp_path, "echo").on_cpu
    assert not asked(tmp_path, "piper", cuda=False).on_cpu
    assert not asked(tmp_path, "vllm").on_cpu
    described: dict[str, Any] = {"inputs": {"x": {"type": "tensor"}}, "outputs": {"y": {"type": "tensor"}}}
    assert not asked(tmp_path, "onnx", options=described).on_cpu
    assert asked(tmp_path, "onnx", options={**described, "device": "cpu"}).on_cpu


def test_an_echo_model_sleeps_on_logical_devices_if_it_has_something_to_give_back(tmp_path: Path) -> None:
    with_weights = asked(tmp_path, "echo", cuda=False, options={"weights": "8MiB"})
    assert with_weights.sleep_footprint == SleepFootprint(residue=MIB, main_memory=8 * MIB)
    assert asked(tmp_path, "echo", cuda=False).sleep_footprint is None


def test_main_memory_is_a_device_of_its_own() -> None:
    assert capacities((GPU, MAIN)) == [Capacity("cuda:0", 5), Capacity("cpu", 7, is_main_memory=True)]


def test_in_a_cluster_trainings_and_models_with_local_parts_stay_on_the_head(tmp_path: Path) -> None:
    head = on_node((Device(name="cpu", kind="cpu", memory=5, label="A CPU"),), "head")
    echo = {"name": "a/b", "kind": "echo", "memory": 1}
    portable = ModelConfig.model_validate(echo)
    apart = ModelConfig.model_validate({**echo, "environment": {"requirements": ["cowsay"]}})
    assert demand(portable, tmp_path, head).nodes is None
    assert demand(apart, tmp_path, head).nodes == frozenset({"head"})
    trained = ModelConfig.model_validate({"name": "a/c", "kind": "vllm", "source": {"path": str(tmp_path)}})
    assert training_demand(trained, tmp_path, head).nodes == frozenset({"head"})
    assert head_only(apart) == "environment of its own"


def test_devices_of_a_cluster_have_their_node() -> None:
    assert capacities(on_node((GPU, MAIN), "box")) == [
        Capacity("box/cuda:0", 5, node="box"),
        Capacity("box/cpu", 7, is_main_memory=True, node="box"),
    ]
