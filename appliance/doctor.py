"""What slows an appliance down or stops it, found before it starts; each with what mends it."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from appliance import hardware, weights
from appliance.config import Config
from appliance.errors import ApplianceError

FILES: Final = 4096  # open files; every client and every replica takes some
SHARED_MEMORY: Final = 256 * 1024**2  # bytes; Ray's object store lies there
DISK: Final = 2 * 1024**3  # bytes, besides weights that are still to come
_IMPORTED: Final = ("vllm", "torch", "transformers", "ray")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    subject: str
    state: Literal["ok", "warning", "failed"]
    found: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """For scripts."""
        return {name: str(getattr(self, name)) for name in self.__struct_fields__}


def examine(config: Config, home: Path, port: int) -> list[Finding]:
    """Every finding about this machine, this config and this data folder."""
    return [
        *bytecode(),
        devices(config),
        disk(home),
        folder(home),
        listening(config.server.host, port),
        open_files(),
        shared_memory(Path("/dev/shm")),  # noqa: S108 - not to put files there
        *pulled(config, home),
    ]


def bytecode() -> Iterator[Finding]:
    """Whether the large libraries are compiled: without it every start compiles them anew."""
    missing = [name for name in _IMPORTED if not _compiled(name)]
    if missing:
        fix = "scripts/install compiles what it installs; else: python -m compileall <site-packages>"
        yield Finding("bytecode", "warning", f"not compiled: {', '.join(missing)}; starts take longer", fix)
    else:
        yield Finding("bytecode", "ok", "the large libraries are compiled")


def _compiled(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return False
    return Path(importlib.util.cache_from_source(spec.origin)).exists()


def devices(config: Config) -> Finding:
    """What models can be placed on."""
    try:
        found = hardware.discover(config.hardware)
    except ApplianceError as error:
        return Finding("devices", "failed", error.detail, "see whether nvidia-smi works")
    names = ", ".join(f"{device.name} ({device.label})" for device in found)
    return Finding("devices", "ok", names)


def disk(home: Path) -> Finding:
    """Room for databases, logs and caches."""
    free = shutil.disk_usage(_existing(home)).free
    found = f"{free / 1024**3:.1f} GiB free at {home}"
    if free < DISK:
        return Finding("disk", "failed", found, "free some, or name another data folder with APPLIANCE_HOME")
    return Finding("disk", "ok", found)


def folder(home: Path) -> Finding:
    """Whether the data folder can be written, and read by nobody else."""
    existing = _existing(home)
    if not os.access(existing, os.W_OK | os.X_OK):
        fix = "give it to the user who runs the appliance, or set APPLIANCE_HOME"
        return Finding("data folder", "failed", f"{existing} cannot be written", fix)
    if existing == home and home.stat().st_mode & 0o077:
        return Finding("data folder", "warning", f"others may look into {home}", f"chmod 700 {home}")
    return Finding("data folder", "ok", str(home))


def listening(host: str, port: int) -> Finding:
    """Whether the port is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            fix = "stop what listens there (perhaps an appliance), or choose another: --port, APPLIANCE_PORT"
            return Finding("port", "warning", f"{host}:{port}: {error.strerror}", fix)
    return Finding("port", "ok", f"{host}:{port} is free")


def open_files() -> Finding:
    """How many files a process may open; sockets count."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        return Finding("open files", "ok", f"{soft} a process")
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    return Finding("open files", "warning", f"{soft} a process", f"ulimit -n {FILES} (at most {most} here)")


def shared_memory(mount: Path) -> Finding:
    """Room for Ray's object store."""
    if not mount.is_dir():
        return Finding("shared memory", "failed", f"there is no {mount}", f"mount a tmpfs at {mount}")
    free = shutil.disk_usage(mount).free
    found = f"{free / 1024**2:.0f} MiB free at {mount}"
    if free < SHARED_MEMORY:
        fix = "make it larger (docker: --shm-size=1g), or remove what crashed programs left there"
        return Finding("shared memory", "failed", found, fix)
    return Finding("shared memory", "ok", found)


def pulled(config: Config, home: Path) -> Iterator[Finding]:
    """Whether each model's weights are there."""
    for model in config.models:
        if model.source is None:
            continue
        if weights.present(home, model):
            yield Finding("weights", "ok", f"{model.name}: at {weights.folder(home, model)}")
        else:
            fix = f"appliance pull {model.name} (serving fetches them too)"
            yield Finding("weights", "warning", f"{model.name}: not fetched yet", fix)


def _existing(path: Path) -> Path:
    """The nearest folder that is there already."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
