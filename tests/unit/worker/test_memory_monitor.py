"""Main memory and GPU memory of a process group."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance import machine
from appliance.machine import Device, process_memory
from appliance.machine.gpus import Gpus
from appliance.machine.memory_use import device_usage
from appliance.worker.memory_monitor import MemoryMonitor, MemoryUsage

MIB = 1024**2
HUNGRY = """
import mmap, sys
with open(sys.argv[1]) as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(mapped[::4096])
held = []
print("begun", flush=True)
for line in sys.stdin:
    held.append(b"\\1" * (int(line) << 20))
    print("held", flush=True)
"""


class Process:
    """A process group that takes as much as it is told, and maps a file of 20 MiB."""

    def __init__(self, file: Path) -> None:
        with file.open("wb") as stream:
            stream.write(b"\1" * 20 * MIB)
            stream.flush()
            os.fsync(stream.fileno())  # only what is on the disk could be dropped
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", HUNGRY, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._read()

    def take(self, mebibytes: int) -> None:
        assert self.process.stdin is not None
        print(mebibytes, file=self.process.stdin, flush=True)
        self._read()

    def _read(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline()


@pytest.fixture
def hungry(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path / "mapped")
    yield process
    process.process.kill()
    process.process.communicate()


class NVML:
    """Answers like pynvml: of each GPU what is taken of 100 MiB, and by which processes."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: dict[int, int | None]) -> None:
        self.gpus = gpus
        self.broken = False

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - pynvml's name
        if self.broken:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802 - pynvml's name
        taken = sum(size or 0 for size in self.gpus[handle].values())
        return SimpleNamespace(total=100 * MIB, free=100 * MIB - taken)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802 - pynvml's name
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.gpus[handle].items()]


def test_the_memory_of_a_group_is_measured_and_new_peaks_reported(hungry: Process) -> None:
    monitor = MemoryMonitor(hungry.process.pid, [], limit=None)
    assert monitor.measure()
    small = monitor.peak.main
    assert 0 < small < 40 * MIB
    assert not monitor.measure()
    hungry.take(60)
    assert monitor.measure()
    assert 60 * MIB < monitor.peak.main < small + 65 * MIB
    assert monitor.over is None


def over(group: int, limit: int) -> int | None:
    monitor = MemoryMonitor(group, [], limit)
    monitor.measure()
    return monitor.over


def test_a_group_over_its_limit_and_the_tolerance_is_detected(hungry: Process) -> None:
    group = hungry.process.pid
    hungry.take(60)
    assert over(group, 8 * MIB) is None  # within what any process may take
    hungry.take(90)
    assert (over(group, 8 * MIB) or 0) > 150 * MIB
    monitor = MemoryMonitor(group, [], limit=200 * MIB)
    monitor.measure()
    before, monitor.limit = monitor.over, MIB  # others have taken what was free
    monitor.measure()
    assert before is None
    assert monitor.over is not None


def test_mapped_files_count_once_the_model_is_loaded(hungry: Process) -> None:
    monitor = MemoryMonitor(hungry.process.pid, [], limit=None)
    monitor.measure()
    loading = monitor.peak.main
    monitor.ready()
    monitor.measure()
    assert monitor.peak.main > loading + 19 * MIB
    group = hungry.process.pid
    assert (
        abs(monitor.peak.main - process_memory.anonymous(group) - process_memory.file_backed(group)) < 2 * MIB
    )


FORKING = """
import os, sys
held = b"\\1" * (100 << 20)
pid = os.fork()
if pid == 0:
    os.setsid()
    own = b"\\1" * (30 << 20)
    if os.fork() == 0:
        more = b"\\1" * (10 << 20)
    sys.stdin.read()
    os._exit(0)
print(pid, flush=True)
sys.stdin.read()
"""


def test_memory_inherited_from_the_parent_does_not_count() -> None:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        inherited = process_memory.inherited(group)
        assert 100 * MIB < inherited < 120 * MIB
        assert process_memory.inherited(parent.pid) == 0
        deadline = time.monotonic() + 60
        # The child of its own shares 30 MiB with it, which are counted in both.
        while not 65 * MIB < process_memory.anonymous(group, inherited) < 80 * MIB:
            assert time.monotonic() < deadline, process_memory.anonymous(group, inherited)
            time.sleep(0.01)
        parent.communicate()


def test_a_group_that_has_ended_uses_nothing(hungry: Process) -> None:
    monitor = MemoryMonitor(hungry.process.pid, [], limit=0)
    hungry.process.kill()
    hungry.process.wait()
    assert not monitor.measure()
    assert monitor.peak == MemoryUsage(0)


def test_the_gpu_with_the_highest_use_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpgrp()
    monkeypatch.setattr(process_memory, "members", lambda group: [1, 2] if group == own else [])
    nvml = NVML({1: 10 * MIB, 9: 70 * MIB}, {1: 10 * MIB, 2: 20 * MIB})
    monkeypatch.setattr(Gpus, "connect", lambda: Gpus(nvml))
    monitor = MemoryMonitor(own, ["cuda:0", "cuda:1"], limit=None)
    assert monitor.measure()
    assert monitor.peak.device == 30 * MIB
    nvml.gpus[1][2] = 5 * MIB
    assert not monitor.measure()
    assert monitor.peak.device == 30 * MIB  # the most it has taken


def test_unknown_memory_and_errors_of_nvml(caplog: pytest.LogCaptureFixture) -> None:
    nvml = NVML({1: None, 9: 70 * MIB})
    gpus = Gpus(nvml)
    assert gpus.used_by("cuda:0", [1]) is None  # a container: the numbers are those of outside
    assert gpus.used_by("cuda:0", [5]) is None
    assert gpus.used("cuda:0") == 70 * MIB
    nvml.broken = True
    assert (gpus.used("cuda:0"), gpus.used_by("cuda:0", [9])) == (None, None)
    assert [record.getMessage() for record in caplog.records] == [
        "NVML cannot read a measurement of cuda:0: GPU is lost"
    ]


def test_the_used_memory_of_each_device() -> None:
    devices = [
        Device(name="cuda:0", kind="cuda", memory=100 * MIB, label=""),
        Device(name="cpu", kind="cpu", memory=80 * MIB, label=""),
        Device(name="part", kind="cpu", memory=80 * MIB, label="", logical=True),
    ]
    nvml = NVML({9: 70 * MIB})
    assert device_usage(devices, Gpus(nvml), lambda: 60 * MIB) == {"cuda:0": 70 * MIB, "cpu": 20 * MIB}
    assert device_usage(devices[1:], None, lambda: 90 * MIB) == {"cpu": 0}
    nvml.broken = True
    assert device_usage(devices, Gpus(nvml), lambda: 90 * MIB) == {"cpu": 0}


def test_out_of_memory_kills_of_the_kernel_are_counted(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    assert process_memory.kernel_kills(proc, cgroups) == 0
    (proc / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    (proc / "self" / "cgroup").write_text("0::/ours\n")
    assert process_memory.kernel_kills(proc, cgroups) == 3
    (cgroups / "ours").mkdir(parents=True)
    (cgroups / "ours" / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert process_memory.kernel_kills(proc, cgroups) == 1


def test_the_limit_of_a_container_bounds_the_memory_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 30 * MIB)  # of the cgroup
    assert device_usage([Device(name="cpu", kind="cpu", memory=80 * MIB, label="")], None) == {
        "cpu": 50 * MIB
    }
