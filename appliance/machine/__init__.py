"""The devices that models are placed on, and how much of this machine the appliance may use.

NVIDIA GPUs are found through NVML. Their names contain NVML's number, which follows the PCI bus order. So a
process that gets GPUs by these numbers in CUDA_VISIBLE_DEVICES also needs CUDA_DEVICE_ORDER=PCI_BUS_ID.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from appliance.config import HardwareConfig
from appliance.domain.errors import ApplianceError
from appliance.machine.proc import PROC

#: Share of the main memory that models may use by default; the rest is for the system and the appliance.
CPU_SHARE: Final = 0.8

CGROUPS: Final = Path("/sys/fs/cgroup")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU, the main memory, or a logical device: models are placed there, and it has its own memory."""

    name: str  # "cpu", "cuda:0", or a declared name; in a cluster "node/cuda:0"
    kind: Literal["cpu", "cuda"]
    memory: int  # bytes that models may reserve
    label: str  # shown to users: "NVIDIA H100 80GB HBM3", "AMD EPYC 7B13, 2 threads"
    logical: bool = False  # declared in the config: main memory under another name
    is_main_memory: bool = False  # only set if there are other devices as well
    node: str = ""  # name of the machine in a cluster; "" without a cluster

    @property
    def local_name(self) -> str:
        """The name on its own machine, without the node."""
        return local_name(self.name, self.node)

    @property
    def sku(self) -> str:
        """Name of the hardware in the API: ``cpu``, ``gpu-h200``, or the name of a logical device."""
        if self.kind == "cpu":
            return self.local_name
        words = re.sub(r"(?i)^nvidia\s+(geforce\s+|tesla\s+)?", "", self.label).lower()
        return "gpu-" + re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def on_node(devices: Sequence[Device], node: str) -> tuple[Device, ...]:
    """Return the devices of a machine with the names that they have in a cluster, such as ``node/cuda:0``."""
    return tuple(
        msgspec.structs.replace(device, name=f"{node}/{device.name}", node=node) for device in devices
    )


def local_name(device: str, node: str) -> str:
    """Return the name that the device of a node has on its own machine: ``cuda:0`` for ``node/cuda:0``."""
    return device.removeprefix(f"{node}/") if node else device


@functools.cache
def joint_sku(skus: tuple[str, ...]) -> str:
    """Return the SKU of several devices together: ``gpu-h200``, or ``gpu-h200-2x`` for two."""
    counts = sorted(Counter(skus).items())
    return "+".join(sku if count == 1 else f"{sku}-{count}x" for sku, count in counts)


def discover(config: HardwareConfig) -> tuple[Device, ...]:
    """Return the declared logical devices, else the visible GPUs, else the single device ``cpu``.

    Main memory follows as the last device if there are GPUs, or if the config declares its size next to
    logical devices. With ``none``, the machine has no devices for models.

    Raises:
        ApplianceError: there is an NVIDIA driver, but it does not work.
    """
    if config.devices == "none":
        return ()
    memory = config.host_memory or int(main_memory() * CPU_SHARE)
    cpu = Device(name="cpu", kind="cpu", memory=memory, label=f"{_cpu_label()}, {cpu_threads()} threads")
    main = msgspec.structs.replace(cpu, is_main_memory=True)
    if config.devices != "auto":
        label = f"{_cpu_label()}, logical device"
        devices = (
            Device(name=device.name, kind="cpu", memory=device.memory, label=label, logical=True)
            for device in config.devices
        )
        return (*devices, main) if config.host_memory is not None else tuple(devices)
    gpus = _gpus()
    return (*gpus, main) if gpus else (cpu,)


# -- GPUs ------------------------------------------------------------------------------------------------


def _gpus() -> tuple[Device, ...]:
    """Return the NVIDIA GPUs that CUDA_VISIBLE_DEVICES allows; none if there is no driver."""
    try:
        import pynvml  # type: ignore[import-not-found,unused-ignore]  # not installed on CPU machines
    except ModuleNotFoundError:  # installed with the extra `gpu` only
        return ()
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return ()
    except pynvml.NVMLError as error:
        raise ApplianceError(
            f"the NVIDIA driver does not answer ({error}): check that nvidia-smi works, "
            "or declare hardware.devices to run without GPUs"
        ) from error
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        uuids = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
        return tuple(
            Device(
                name=f"cuda:{index}",
                kind="cuda",
                memory=int(pynvml.nvmlDeviceGetMemoryInfo(handles[index]).total),
                label=pynvml.nvmlDeviceGetName(handles[index]),
            )
            for index in visible_gpus(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))
        )
    except pynvml.NVMLError as error:
        raise ApplianceError(f"a GPU does not answer ({error}): check that nvidia-smi works") from error
    finally:
        pynvml.nvmlShutdown()


def visible_gpus(uuids: Sequence[str], variable: str | None) -> tuple[int, ...]:
    """Return the positions in ``uuids`` of the GPUs that ``variable``, CUDA_VISIBLE_DEVICES, allows.

    Like CUDA, this reads numbers and beginnings of UUIDs, and ends at the first entry that matches no GPU.
    """
    if variable is None:
        return tuple(range(len(uuids)))
    chosen: list[int] = []
    for entry in (part.strip() for part in variable.split(",")):
        if entry.isdecimal():
            matches = [int(entry)] if int(entry) < len(uuids) else []
        else:
            matches = [index for index, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if len(matches) != 1:
            break
        chosen += [index for index in matches if index not in chosen]
    return tuple(chosen)


# -- main memory and CPU ---------------------------------------------------------------------------------


def main_memory(*, cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Return the bytes of main memory that the machine, or else a cgroup (v1, v2), allows this process."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in cgroup_folders("memory", cgroups, proc):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = read_words(folder / name)
            # Without a limit, v2 has the word "max", and v1 a number larger than any memory.
            limits += [int(word) for word in words if word.isdecimal()]
    return min(limits)


def available_memory(*, cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Return the bytes of ``main_memory`` that are free or that caches would give back."""
    available = [main_memory(cgroups=cgroups, proc=proc)]
    words = read_words(proc / "meminfo")
    if "MemAvailable:" in words:
        available.append(1024 * int(words[words.index("MemAvailable:") + 1]))
    for folder in cgroup_folders("memory", cgroups, proc):
        for limit, usage, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, used = read_words(folder / limit), read_words(folder / usage)
            if most and most[0].isdecimal() and used:
                facts = read_words(folder / "memory.stat")
                cache = int(facts[facts.index(cached) + 1]) if cached in facts else 0
                available.append(max(0, int(most[0]) - int(used[0]) + cache))
    return min(available)


def cpu_threads(*, cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Return how many CPU threads the affinity and the cgroup's CPU time limit allow this process."""
    allowed = len(os.sched_getaffinity(0))
    for folder in cgroup_folders("cpu", cgroups, proc):
        words = read_words(folder / "cpu.max") or [
            *read_words(folder / "cpu.cfs_quota_us"),
            *read_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and all(word.isdecimal() for word in words):
            allowed = min(allowed, math.ceil(int(words[0]) / int(words[1])))
    return max(1, allowed)


def cgroup_folders(controller: str, cgroups: Path, proc: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of its parents, of version 2 and of version 1.

    In a container the path may be the one outside of it, which does not exist inside. The cgroup is then
    mounted at the root, which is the last folder.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().strip().split("\n")
    except OSError:  # a kernel without cgroups
        return
    for line in filter(None, lines):
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        if controllers and not root.is_dir():
            root = cgroups / controller  # "cpu,cpuacct" is also mounted under each name
        path = Path(group.lstrip("/"))
        for folder in (path, *path.parents):
            yield root / folder


def read_words(file: Path) -> list[str]:
    """Return the words of a file; none if it does not exist: each version of cgroups has its own files."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def _cpu_label() -> str:
    try:
        lines = (PROC / "cpuinfo").read_text().split("\n")
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, os.uname().machine)
