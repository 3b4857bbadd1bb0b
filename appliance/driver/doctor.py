"""Finds what would slow an appliance down or stop it, before it starts; each finding says what to do."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import resource
import shutil
import socket
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final, Literal

import msgspec
import psutil

from appliance import machine, weights
from appliance.config import Config
from appliance.domain.errors import ApplianceError, WeightsError
from appliance.domain.units import readable_bytes
from appliance.worker import cleanup

FILES: Final = 4096  # open files; every client and every replica takes some
SHARED_MEMORY: Final = 256 * 1024**2  # bytes; Ray's object store lies there
DISK: Final = 2 * 1024**3  # bytes, besides weights that are still to come
#: Kind of model -> what it needs installed; with None, what everything needs.
_NEEDED: Final[dict[str | None, tuple[str, ...]]] = {
    None: ("ray",),
    "vllm": ("vllm", "torch", "transformers"),
}


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
        *libraries(config),
        writing(),
        devices(config),
        disk(home),
        folder(home),
        leftovers(home),
        listening(config.server.host, port),
        open_files(),
        shared_memory(Path("/dev/shm")),  # noqa: S108 - not to put files there
        *pulled(config, home),
    ]


def libraries(config: Config) -> Iterator[Finding]:
    """Whether the large libraries are there, and compiled: else every start compiles them anew."""
    needed = {name: importlib.util.find_spec(name) for name in _NEEDED[None]}
    for kind in {model.kind for model in config.models} & _NEEDED.keys():
        needed |= {name: importlib.util.find_spec(name) for name in _NEEDED[kind]}
    missing = [name for name, spec in needed.items() if spec is None]
    if missing:
        fix = "scripts/install installs what the appliance needs"
        yield Finding("libraries", "failed", f"not installed: {', '.join(missing)}", fix)
    raw = [name for name, spec in needed.items() if spec is not None and not _compiled(spec)]
    if raw:
        fix = f"{sys.executable} -m compileall -q -j0 {sysconfig.get_path('purelib')}"
        yield Finding("libraries", "warning", f"not compiled: {', '.join(raw)}; starts take longer", fix)
    if not missing and not raw:
        yield Finding("libraries", "ok", f"installed and compiled: {', '.join(needed)}")


def _compiled(spec: ModuleSpec) -> bool:
    origin = spec.origin or ""
    return not origin.endswith(".py") or Path(importlib.util.cache_from_source(origin)).exists()


def writing() -> Finding:
    """Whether Python may keep what it compiles."""
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        found = "PYTHONDONTWRITEBYTECODE is set: `appliance serve` removes it, other commands start slower"
        return Finding("bytecode", "warning", found, "unset PYTHONDONTWRITEBYTECODE")
    return Finding("bytecode", "ok", "Python keeps what it compiles")


def devices(config: Config) -> Finding:
    """Report the devices that models can be placed on."""
    try:
        found = machine.discover(config.hardware)
    except ApplianceError as error:
        return Finding("devices", "failed", error.detail, "see whether nvidia-smi works")
    names = ", ".join(f"{device.name} ({device.label})" for device in found)
    return Finding("devices", "ok", names)


def disk(home: Path) -> Finding:
    """Room for databases, logs and caches."""
    free = shutil.disk_usage(_existing(home)).free
    found = f"{readable_bytes(free)} free at {home}"
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


def leftovers(home: Path) -> Finding:
    """Whether an appliance uses the data folder now, or has crashed and left engine hosts there."""
    lock = home / "run" / "lock"
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return Finding("other runs", "ok", "nothing has run with this data folder yet")
    except BlockingIOError:
        found = f"an appliance (process {lock.read_text().strip()}) runs with this data folder"
        return Finding("other runs", "ok", found)
    except OSError as error:
        fix = f"chown -R {os.getuid()} {home}"
        return Finding("other runs", "failed", f"{lock}: {error.strerror}", fix)
    hosts = sorted(int(file.name) for file in cleanup.folder(home / "run").glob("[0-9]*"))
    if hosts:
        found = f"a run crashed and may have left engine hosts: processes {', '.join(map(str, hosts))}"
        return Finding("other runs", "warning", found, "the next `appliance serve` ends them")
    return Finding("other runs", "ok", "nothing is left of an earlier run")


def listening(host: str, port: int) -> Finding:
    """Whether the port is free, else who has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            who = holder(port)
            fix = "stop what listens there (perhaps a running appliance), or choose another: APPLIANCE_PORT"
            found = f"{host}:{port}: {error.strerror}" + (f" by {who}" if who else "")
            return Finding("port", "warning", found, fix)
    return Finding("port", "ok", f"{host}:{port} is free")


def holder(port: int) -> str | None:
    """Return the process that listens on ``port`` as "name (process 1)"; None if this user may not see it."""
    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        if listens and connection.pid is not None:
            with contextlib.suppress(psutil.Error):  # it has just ended
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return None


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
    if not os.access(mount, os.W_OK | os.X_OK):
        fix = f"mount a writable tmpfs at {mount} (docker: --shm-size=1g)"
        return Finding("shared memory", "failed", f"{mount} cannot be written", fix)
    free = shutil.disk_usage(mount).free
    found = f"{readable_bytes(free)} free at {mount}"
    if free < SHARED_MEMORY:
        fix = "make it larger (docker: --shm-size=1g), or remove what crashed programs left there"
        return Finding("shared memory", "failed", found, fix)
    return Finding("shared memory", "ok", found)


def pulled(config: Config, home: Path) -> Iterator[Finding]:
    """Whether each model's weights are there."""
    for model in config.models:
        if model.source is None:
            continue
        try:
            present = weights.present(home, model)
        except WeightsError as error:
            yield Finding("weights", "failed", error.detail, "make its files readable, or fetch them again")
            continue
        if present:
            yield Finding("weights", "ok", f"{model.name}: at {weights.folder(home, model)}")
        else:
            fix = f"appliance pull {model.name} (serving fetches them too)"
            yield Finding("weights", "warning", f"{model.name}: not fetched yet", fix)


def _existing(path: Path) -> Path:
    """The nearest folder that is there already."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
