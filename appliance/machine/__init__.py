"""The devices that models are placed on, and what the appliance may use of this machine.

NVIDIA GPUs are found through NVML. Their names carry NVML's number, which counts in PCI bus order: a process
that is given some of them by number needs CUDA_DEVICE_ORDER=PCI_BUS_ID beside CUDA_VISIBLE_DEVICES. Whether
the configured models fit is for the scheduler to say, which keeps the ledger (`Scheduler.check_fits`).
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from appliance.config import HardwareConfig
from appliance.domain.errors import ApplianceError
from appliance.machine.proc import PROC

#: Of the main memory, what models may have by default; the rest is for the system and the appliance itself.
CPU_SHARE: Final = 0.8

CGROUPS: Final = Path("/sys/fs/cgroup")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One place for models, with its own memory."""

    name: str  # "cpu", "cuda:0", or a declared name
    kind: Literal["cpu", "cuda"]
    memory: int  # bytes that models may reserve
    label: str  # for people: "NVIDIA H100 80GB HBM3", "AMD EPYC 7B13, 2 threads"
    logical: bool = False  # declared in the config: main memory under another name
    host: bool = False  # main memory, beside other devices

    @property
    def sku(self) -> str:
        """The name of its kind in the API: ``cpu``, ``gpu-h200``, or that of a declared logical device."""
        if self.kind == "cpu":
            return self.name
        words = re.sub(r"(?i)^nvidia\s+(geforce\s+|tesla\s+)?", "", self.label).lower()
        return "gpu-" + re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def joint_sku(skus: Iterable[str]) -> str:
    """Return the SKU of several devices together: ``gpu-h200``, or ``gpu-h200-2x`` for two."""
    counts = sorted(Counter(skus).items())
    return "+".join(sku if count == 1 else f"{sku}-{count}x" for sku, count in counts)


def discover(config: HardwareConfig) -> tuple[Device, ...]:
    """The declared logical devices; else the GPUs that may be used; else the one device ``cpu``.

    Main memory is the last, where there are GPUs, and beside logical devices where it is declared too.

    Raises:
        ApplianceError: there is an NVIDIA driver, but it does not work.
    """
    memory = config.host_memory or int(host_memory() * CPU_SHARE)
    cpu = Device(name="cpu", kind="cpu", memory=memory, label=f"{_cpu_label()}, {cpu_threads()} threads")
    beside = msgspec.structs.replace(cpu, host=True)
    if config.devices != "auto":
        label = f"{_cpu_label()}, logical device"
        devices = (
            Device(name=device.name, kind="cpu", memory=device.memory, label=label, logical=True)
            for device in config.devices
        )
        return (*devices, beside) if config.host_memory is not None else tuple(devices)
    gpus = _gpus()
    return (*gpus, beside) if gpus else (cpu,)


# -- GPUs ------------------------------------------------------------------------------------------------


def _gpus() -> tuple[Device, ...]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves; none where there is no driver."""
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
            f"the NVIDIA driver does not answer ({error}); see whether nvidia-smi works, "
            "or declare hardware.devices to run without GPUs"
        ) from error
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        uuids = [_text(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        return tuple(
            Device(
                name=f"cuda:{index}",
                kind="cuda",
                memory=int(pynvml.nvmlDeviceGetMemoryInfo(handles[index]).total),
                label=_text(pynvml.nvmlDeviceGetName(handles[index])),
            )
            for index in visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))
        )
    except pynvml.NVMLError as error:
        raise ApplianceError(f"a GPU does not answer ({error}); see whether nvidia-smi works") from error
    finally:
        pynvml.nvmlShutdown()


def visible(uuids: Sequence[str], variable: str | None) -> tuple[int, ...]:
    """Return the positions of the GPUs, given by UUID, that CUDA_VISIBLE_DEVICES allows.

    As CUDA reads it: numbers or beginnings of UUIDs; the first entry that means no GPU ends the list.
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


def _text(value: Any) -> str:
    """Older releases of pynvml answer with bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


# -- main memory and CPU ---------------------------------------------------------------------------------


def host_memory(*, cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Bytes of main memory this process may use: the machine's, or less where a cgroup (v1, v2) limits it."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in cgroup_folders("memory", cgroups, proc):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = read_words(folder / name)
            # Without a limit v2 says "max", and v1 a number larger than any memory.
            limits += [int(word) for word in words if word.isdecimal()]
    return min(limits)


def available_memory(*, cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Bytes of ``host_memory`` that could be had now: what is free, and what caches would give back."""
    available = [host_memory(cgroups=cgroups, proc=proc)]
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
    """CPU threads this process may keep busy: those it may run on, or less where a cgroup limits its time."""
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
    """The folders that may limit this process: its group's and every one above, in v2 and in v1's hierarchy.

    In a container the path of the group may be the host's and missing here; the group is then mounted at the
    root, which is among the folders.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().strip().split("\n")
    except OSError:  # a kernel without cgroups limits nothing
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
    """Return the words of a cgroup file; none if this kind of cgroup has no such file."""
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
