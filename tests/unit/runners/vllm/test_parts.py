"""The parts of a model on several machines: arguments of vLLM, environment, network interface."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from appliance.domain.errors import LoadFailed
from appliance.runners.base import LoadSpec, Part
from appliance.runners.vllm import parts
from appliance.runners.vllm.options import VllmOptions

ADDRESSES = {"lo": ["127.0.0.1"], "eth0": ["192.168.1.5"], "eth1": ["10.9.0.2", "10.9.1.2"], "wg0": []}


def part(index: int = 0, count: int = 2, address: str = "127.0.0.1") -> Part:
    return Part(index=index, count=count, address=address, leader="10.9.0.1", port=20007)


def spec(one: Part | None, **options: Any) -> LoadSpec:
    return LoadSpec(
        model="test/large", version="0" * 64, kind="vllm", options=VllmOptions(**options).model_dump(),
        weights=None, device="cpu", memory=1, threads=1, concurrency=1, cache="/cache", part=one,
    )  # fmt: skip


def test_a_model_on_one_machine_has_a_process_of_its_own_for_several_devices_only() -> None:
    assert parts.engine_arguments(spec(None), 1) == {
        "tensor_parallel_size": 1,
        "distributed_executor_backend": "uni",
    }
    assert parts.engine_arguments(spec(None), 4) == {
        "tensor_parallel_size": 4,
        "distributed_executor_backend": "mp",
    }


@pytest.mark.parametrize(
    ("across", "devices", "tensor", "pipeline"),
    [("pipeline", 1, 1, 3), ("pipeline", 4, 4, 3), ("tensor", 1, 3, 1), ("tensor", 4, 12, 1)],
)
def test_how_a_model_is_divided_among_machines(across: str, devices: int, tensor: int, pipeline: int) -> None:
    assert parts.engine_arguments(spec(part(1, 3), across_machines=across), devices) == {
        "tensor_parallel_size": tensor,
        "pipeline_parallel_size": pipeline,
        "distributed_executor_backend": "mp",
        "nnodes": 3,
        "node_rank": 1,
        "master_addr": "10.9.0.1",
        "master_port": 20007,
    }


def test_all_parts_but_the_first_are_followers() -> None:
    assert [parts.is_follower(spec(each)) for each in (None, part(0), part(1), part(2))] == [
        False, False, True, True,
    ]  # fmt: skip


def test_the_interface_is_found_by_its_address() -> None:
    assert parts.interface("192.168.1.5", ADDRESSES) == "eth0"
    assert parts.interface("10.9.0.2", ADDRESSES) == "eth1"
    assert parts.interface("127.0.0.3", ADDRESSES) == "lo"


def test_an_address_that_vllm_would_not_use_is_refused() -> None:
    with pytest.raises(LoadFailed, match=r"interface eth1 has 10\.9\.1\.2 only .* the first is 10\.9\.0\.2"):
        parts.interface("10.9.1.2", ADDRESSES)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(LoadFailed, match=r"does not have the address 10\.9\.0\.3.*has 127\.0\.0\.1, 192"):
        parts.interface("10.9.0.3", ADDRESSES)


def test_the_environment_names_the_address_and_limits_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    parts.set_environment(part(), on_cpus=False)
    name = next(
        name
        for name, found in psutil.net_if_addrs().items()
        if any(each.family == socket.AF_INET and each.address == "127.0.0.1" for each in found)
    )
    assert os.environ == {
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": name,
        "NCCL_SOCKET_IFNAME": f"={name}",
        "NCCL_SOCKET_FAMILY": "AF_INET",
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "60",
    }
    assert parts.step_limit() == 60


def test_a_limit_for_steps_in_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "120"})
    parts.set_environment(part(), on_cpus=True)
    assert parts.step_limit() == 120


def test_a_step_on_cpus_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    parts.set_environment(part(), on_cpus=True)
    assert parts.step_limit() == 300


def test_a_port_on_all_interfaces_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        parts.check_ports()
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(LoadFailed, match=f"vLLM listens on all network interfaces, at port {port}"):
            parts.check_ports()


def test_how_a_model_is_divided_does_not_change_its_version() -> None:
    assert "across_machines" in VllmOptions.UNVERSIONED


def test_all_parts_draw_the_same_random_numbers() -> None:
    from torch.distributed import HashStore

    store = HashStore()
    configs = [SimpleNamespace(seed=seed) for seed in (7, 8, 9)]
    for rank, config in enumerate(configs):
        parts.share_seed(store, rank, config)
    assert [config.seed for config in configs] == [7, 7, 7]
