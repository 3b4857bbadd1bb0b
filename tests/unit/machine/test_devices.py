"""Declared devices, GPUs (with a fake NVML), the CPU, and limits of cgroups."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from appliance.config import HardwareConfig
from appliance.domain.errors import ApplianceError
from appliance.machine import (
    Device,
    available_memory,
    cpu_threads,
    discover,
    main_memory,
    on_node,
    visible_gpus,
)

GIB = 1024**3
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class NVML(ModuleType):
    """Answers like pynvml about a machine with two GPUs."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):  # noqa: N801 - pynvml's name
        pass

    class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801 - pynvml's name
        pass

    def __init__(self, init: Exception | None = None, memory: Exception | None = None) -> None:
        super().__init__("pynvml")
        self.init = init
        self.memory = memory
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's name
        if self.init is not None:
            raise self.init
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - pynvml's name
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - pynvml's name
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - pynvml's name
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802 - pynvml's name
        return f"GPU-{handle}a"

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802 - pynvml's name
        return "NVIDIA Test"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802 - pynvml's name
        if self.memory is not None:
            raise self.memory
        return SimpleNamespace(total=(handle + 1) * GIB)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has, a test sees only what it puts there."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_declared_devices_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", NVML())
    config = HardwareConfig.model_validate(
        {"devices": [{"name": "a", "memory": "1GiB"}, {"name": "b", "memory": 5}]}
    )
    devices = discover(config)
    assert [(d.name, d.memory, d.kind, d.logical) for d in devices] == [
        ("a", GIB, "cpu", True),
        ("b", 5, "cpu", True),
    ]


def test_gpus_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = NVML()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    *devices, main = discover(HardwareConfig(host_memory=GIB))
    assert (main.name, main.kind, main.memory, main.is_main_memory) == ("cpu", "cpu", GIB, True)
    assert [(d.name, d.kind, d.memory, d.label) for d in devices] == [
        ("cuda:0", "cuda", GIB, "NVIDIA Test"),
        ("cuda:1", "cuda", 2 * GIB, "NVIDIA Test"),
    ]
    assert nvml.open == 0


def test_only_visible_gpus_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", NVML())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [device.name for device in discover(HardwareConfig())] == ["cuda:1", "cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [device.name for device in discover(HardwareConfig())] == ["cpu"]


@pytest.mark.parametrize(
    ("variable", "indexes"),
    [
        (None, (0, 1, 2)),
        ("", ()),
        ("2,0", (2, 0)),
        (" 1 , 1", (1,)),
        ("0,7,1", (0,)),  # what follows an entry that means nothing does not count
        ("-1", ()),
        ("GPU-b", (1,)),
        ("GPU-a2,GPU-b", (2, 1)),
        ("GPU-a", ()),  # could be either
        ("MIG-x,0", ()),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(variable: str | None, indexes: tuple[int, ...]) -> None:
    assert visible_gpus(["GPU-a1", "GPU-b1", "GPU-a2"], variable) == indexes


@pytest.mark.parametrize("error", [NVML.NVMLError_LibraryNotFound(), NVML.NVMLError_DriverNotLoaded()])
def test_without_a_driver_there_is_the_cpu(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", NVML(error))
    (device,) = discover(HardwareConfig())
    assert (device.name, device.kind, device.logical) == ("cpu", "cpu", False)
    assert device.memory == int(main_memory() * 0.8)
    assert device.label.endswith(f"{cpu_threads()} threads")


def test_a_broken_driver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", NVML(NVML.NVMLError("version mismatch")))
    with pytest.raises(ApplianceError, match="version mismatch"):
        discover(HardwareConfig())
    nvml = NVML(memory=NVML.NVMLError("GPU is lost"))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with pytest.raises(ApplianceError, match="GPU is lost"):
        discover(HardwareConfig())
    assert nvml.open == 0


def test_the_memory_of_the_cpu_device_can_be_set() -> None:
    (device,) = discover(HardwareConfig(host_memory=GIB))
    assert (device.name, device.memory, device.is_main_memory) == ("cpu", GIB, False)


def test_main_memory_follows_logical_devices_if_its_size_is_declared() -> None:
    declared = {"devices": [{"name": "a", "memory": 5}], "host_memory": "1GiB"}
    devices = discover(HardwareConfig.model_validate(declared))
    assert [(device.name, device.memory, device.is_main_memory) for device in devices] == [
        ("a", 5, False),
        ("cpu", GIB, True),
    ]


# -- cgroups ---------------------------------------------------------------------------------------------


class Machine:
    """A /proc and a /sys/fs/cgroup of our own."""

    def __init__(self, folder: Path, groups: str) -> None:
        self.proc = folder / "proc"
        self.cgroups = folder / "cgroup"
        self.write("proc/self/cgroup", groups, folder)

    def write(self, name: str, text: str, root: Path | None = None) -> None:
        file = (root or self.cgroups) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    @property
    def memory(self) -> int:
        return main_memory(cgroups=self.cgroups, proc=self.proc)

    @property
    def threads(self) -> int:
        return cpu_threads(cgroups=self.cgroups, proc=self.proc)


def test_without_limits_the_whole_machine_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/a/b\n")
    machine.write("a/b/memory.max", "max\n")
    machine.write("a/b/cpu.max", "max 100000\n")
    assert machine.memory == MACHINE
    assert machine.threads == len(os.sched_getaffinity(0))
    assert main_memory(cgroups=tmp_path, proc=tmp_path / "none") == MACHINE


def test_available_memory_is_that_of_the_kernel_and_of_the_cgroup(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/a\n")
    (machine.proc / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\n")
    assert available_memory(cgroups=machine.cgroups, proc=machine.proc) == 4_096_000
    machine.write("a/memory.max", "2000000\n")
    machine.write("a/memory.current", "1500000\n")
    machine.write("a/memory.stat", "anon 1000000\ninactive_file 400000\n")
    assert available_memory(cgroups=machine.cgroups, proc=machine.proc) == 900_000
    machine.write("a/memory.current", "2600000\n")
    assert available_memory(cgroups=machine.cgroups, proc=machine.proc) == 0


def test_cgroup_2_limits_count_up_to_the_root(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/a/b\n")
    machine.write("a/b/memory.max", "2000000\n")
    machine.write("a/memory.max", "1000000\n")
    machine.write("a/cpu.max", "50000 100000\n")
    assert machine.memory == 1_000_000
    assert machine.threads == 1


def test_cgroup_1_limits_count(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "5:cpuset:/x\n4:memory:/a\n2:cpu,cpuacct:/a\n1:name=systemd:/x\n")
    machine.write("memory/memory.limit_in_bytes", "9223372036854771712\n")
    machine.write("memory/a/memory.limit_in_bytes", "3000000\n")
    machine.write("cpu/a/cpu.cfs_quota_us", "100000\n")
    machine.write("cpu/a/cpu.cfs_period_us", "100000\n")
    assert machine.memory == 3_000_000
    assert machine.threads == 1


def test_a_group_mounted_at_the_root_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "4:memory:/docker/0123\n2:cpu:/docker/0123\n")
    machine.write("memory/memory.limit_in_bytes", "4000000\n")
    machine.write("cpu/cpu.cfs_quota_us", "-1\n")
    machine.write("cpu/cpu.cfs_period_us", "100000\n")
    assert machine.memory == 4_000_000
    assert machine.threads == len(os.sched_getaffinity(0))


def test_threads_follow_the_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n")
    machine.write("cpu.max", "250000 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.threads == 3


def test_devices_of_a_node_have_its_name_but_the_hardware_of_the_machine() -> None:
    gpu = Device(name="cuda:0", kind="cuda", memory=1, label="NVIDIA H100 80GB HBM3")
    cpu = Device(name="cpu", kind="cpu", memory=1, label="a CPU")
    devices = on_node((gpu, cpu), "box")
    assert [device.name for device in devices] == ["box/cuda:0", "box/cpu"]
    assert [device.local_name for device in devices] == ["cuda:0", "cpu"]
    assert [device.sku for device in devices] == [gpu.sku, "cpu"]
