"""What models ask of the machine: whether they can sleep there, and whose memory they take."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from appliance.config import ClusterConfig, ModelConfig
from appliance.gateway.catalogue.demands import capacities, demand, training_demand
from appliance.machine import Device, on_node
from appliance.machine.hardware import hardware, head_only
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
    return demand(model, folder, hardware(devices, None))


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


@pytest.mark.parametrize("kind", ["vllm", "piper", "echo"])
def test_without_devices_of_its_own_the_head_knows_the_demand_on_nodes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "weights.safetensors").write_bytes(bytes(MIB))
    source = {} if kind == "echo" else {"source": {"path": str(tmp_path)}}
    model = ModelConfig.model_validate({"name": "a/a", "kind": kind, **source})
    gpus, cpus = (ClusterConfig(address="a", devices=each) for each in ("gpu", "cpu"))
    on_gpu, on_cpu = hardware((GPU, MAIN), None), hardware((LOGICAL,), None)
    assert demand(model, tmp_path, hardware((), gpus, "head")) == demand(model, tmp_path, on_gpu)
    assert demand(model, tmp_path, hardware((), cpus, "head")) == demand(model, tmp_path, on_cpu)


def test_in_a_cluster_trainings_and_models_with_local_parts_stay_on_the_head(tmp_path: Path) -> None:
    head = hardware(on_node((Device(name="cpu", kind="cpu", memory=5, label="A CPU"),), "head"), None)
    echo = {"name": "a/b", "kind": "echo", "memory": 1}
    portable = ModelConfig.model_validate(echo)
    apart = ModelConfig.model_validate({**echo, "environment": {"requirements": ["cowsay"]}})
    assert demand(portable, tmp_path, head).nodes is None
    assert demand(apart, tmp_path, head).nodes == frozenset({"head"})
    trained = ModelConfig.model_validate({"name": "a/c", "kind": "vllm", "source": {"path": str(tmp_path)}})
    assert training_demand(trained, tmp_path, head).nodes == frozenset({"head"})
    assert head_only(apart) == "environment of its own"


def language_model(folder: Path, *, parameters: int, vocabulary: int) -> None:
    """Weights in bfloat16 with one tensor, and a config that says how large the embeddings are."""
    tensor = {"dtype": "BF16", "shape": [parameters], "data_offsets": [0, 2 * parameters]}
    header = json.dumps({"weight": tensor}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(2 * parameters)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocabulary, "hidden_size": 1024}))


def on_machines(folder: Path, machines: int, **keys: Any) -> Demand:
    options = {"max_adapters": 0, "dtype": "bfloat16", "kv_cache": MIB, **keys.pop("options", {})}
    source = {"source": {"path": str(folder)}, "options": options}
    model = ModelConfig.model_validate(
        {"name": "a/a", "kind": "vllm", "machines": machines, **source, **keys}
    )
    return demand(model, folder, hardware((GPU, MAIN), None))


def test_each_machine_has_its_share_of_the_weights_and_embeddings(tmp_path: Path) -> None:
    language_model(tmp_path, parameters=4 * MIB, vocabulary=512)
    alone, two, four = (on_machines(tmp_path, machines) for machines in (1, 2, 4))
    beside = GIB + MIB  # the process and its KV cache
    assert (alone.machines, alone.memory) == (1, 8 * MIB + beside)
    assert (two.machines, two.devices, two.memory) == (2, 1, 4 * MIB + MIB + beside)
    assert (four.machines, four.memory) == (4, 2 * MIB + MIB + beside)
    assert alone.sleep_footprint is not None
    assert two.sleep_footprint is None


def test_the_share_is_never_more_than_all_weights(tmp_path: Path) -> None:
    language_model(tmp_path, parameters=4 * MIB, vocabulary=4096)
    assert on_machines(tmp_path, 2).memory == on_machines(tmp_path, 1).memory


def test_weights_of_an_unknown_format_are_divided_too(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(bytes(4 * MIB))
    alone, two = on_machines(tmp_path, 1).memory, on_machines(tmp_path, 2).memory
    assert alone is not None
    assert two is not None
    assert 0 < alone - two <= 4 * MIB


def test_devices_of_each_machine(tmp_path: Path) -> None:
    language_model(tmp_path, parameters=MIB, vocabulary=1)
    found = on_machines(tmp_path, 2, gpu=4)
    assert (found.devices, found.machines, found.share, found.memory) == (4, 2, 1.0, None)
    declared = on_machines(tmp_path, 2, memory=2 * GIB)
    assert (declared.devices, declared.machines, declared.memory) == (1, 2, 2 * GIB)


def test_a_machine_outside_of_the_private_network_holds_no_parts() -> None:
    assert capacities(on_node((GPU,), "box"), may_hold_parts=False) == [
        Capacity("box/cuda:0", 5, node="box", may_hold_parts=False)
    ]


def test_devices_of_a_cluster_have_their_node() -> None:
    assert capacities(on_node((GPU, MAIN), "box")) == [
        Capacity("box/cuda:0", 5, node="box"),
        Capacity("box/cpu", 7, is_main_memory=True, node="box"),
    ]
