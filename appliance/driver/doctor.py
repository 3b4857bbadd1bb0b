"""Checks for `appliance doctor`: find what would stop an appliance or slow it down, and say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import resource
import shutil
import socket
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
import psutil

from appliance import machine, weights
from appliance.builds import environments
from appliance.config import Config, ModelConfig, S3Config
from appliance.domain.errors import (
    ApplianceError,
    BucketUnavailable,
    EncryptionError,
    StoreError,
    WeightsError,
)
from appliance.domain.local_url import host_and_port, is_loopback
from appliance.domain.units import readable_bytes
from appliance.driver import home_lock, repair
from appliance.driver.backup_format import DATABASE
from appliance.gateway.listener import socket_address
from appliance.gateway.sign_on import discover
from appliance.machine import landlock
from appliance.machine.hardware import LET_HEAD_RUN, NO_MODELS, head_only
from appliance.runners import KINDS
from appliance.runners.adapters import with_downloads
from appliance.store import Store, snapshot
from appliance.store.bucket_objects import BUCKET_ID

T = TypeVar("T")

FILES: Final = 4096  # open files; each client and each replica needs several
_FIX: Final = "appliance doctor --fix"
SHARED_MEMORY: Final = 256 * 1024**2  # bytes; holds Ray's object store
Repair = Literal["permissions", "leftovers", "files"]

DISK: Final = 2 * 1024**3  # bytes, without weights that are not downloaded yet


class CheckResult(msgspec.Struct, frozen=True):
    """The result of one check."""

    subject: str
    state: Literal["ok", "warning", "failed"]
    found: str
    fix: str = ""
    repair: Repair | None = None  # what `appliance doctor --fix` does about it


#: Repair -> the function that carries it out, and whether it deletes data, so that the user is asked.
REPAIRS: Final[dict[Repair, tuple[Callable[[Path], str], bool]]] = {
    "permissions": (repair.restrict_permissions, False),
    "leftovers": (repair.remove_leftovers, False),
    "files": (repair.remove_unreferenced, True),
}


def examine(config: Config, home: Path, port: int) -> list[CheckResult]:
    return [
        *libraries(config),
        bytecode(),
        devices(config),
        disk(home),
        folder(home),
        leftovers(home),
        *database(config, home),
        *(stored_files(home) if config.store.url is None else ()),
        listening_port(config.server.host, port),
        open_files(),
        shared_memory(Path("/dev/shm")),  # noqa: S108 - no file is put there
        isolation(),
        *downloads(config, home),
        *identity_provider(config),
        *bucket(config, home),
    ]


def isolation() -> CheckResult:
    """Check that models can be kept from reading the memory and environment of other processes."""
    if landlock.supported():
        return CheckResult("isolation of models", "ok", "Landlock")
    return CheckResult(
        "isolation of models",
        "warning",
        "the kernel does not support Landlock: the code of models can read the memory of other processes",
        "use Linux 5.19 or later, with landlock in the kernel parameter lsm",
    )


def libraries(config: Config) -> Iterator[CheckResult]:
    """Check that large libraries are installed, and compiled: otherwise each start compiles them again."""
    kinds = [] if config.hardware.devices == "none" else [model.kind for model in config.models]
    names = dict.fromkeys(["ray", *(name for kind in kinds for name in KINDS[kind].libraries)])
    needed = {name: importlib.util.find_spec(name) for name in names}
    missing = [name for name, spec in needed.items() if spec is None]
    if missing:
        fix = (
            "run scripts/install in a checkout; otherwise install appliance[cpu], or appliance[gpu] for GPUs"
        )
        yield CheckResult("libraries", "failed", f"not installed: {', '.join(missing)}", fix)
    slow = [name for name, spec in needed.items() if spec is not None and not _compiled(spec)]
    if slow:
        fix = f"{sys.executable} -m compileall -q -j0 {sysconfig.get_path('purelib')}"
        yield CheckResult("libraries", "warning", f"not compiled: {', '.join(slow)}; starts take longer", fix)
    if not missing and not slow:
        yield CheckResult("libraries", "ok", f"installed and compiled: {', '.join(needed)}")


def _compiled(spec: ModuleSpec) -> bool:
    origin = spec.origin or ""
    return not origin.endswith(".py") or Path(importlib.util.cache_from_source(origin)).exists()


def bytecode() -> CheckResult:
    """Check whether Python writes compiled modules to the disk."""
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        found = "PYTHONDONTWRITEBYTECODE is set: `appliance serve` removes it, other commands start slower"
        return CheckResult("bytecode", "warning", found, "unset PYTHONDONTWRITEBYTECODE")
    return CheckResult("bytecode", "ok", "Python keeps compiled modules")


def devices(config: Config) -> CheckResult:
    try:
        found = machine.discover(config.hardware)
    except ApplianceError as error:
        return CheckResult("devices", "failed", error.detail, "check that nvidia-smi works")
    if not found:
        return CheckResult("devices", "ok", "none: only the nodes of the cluster run models")
    names = ", ".join(f"{device.name} ({device.label})" for device in found)
    return CheckResult("devices", "ok", names)


def disk(home: Path) -> CheckResult:
    """Check the free space for databases, logs and caches."""
    free = shutil.disk_usage(_existing(home)).free
    found = f"{readable_bytes(free)} free at {home}"
    if free < DISK:
        return CheckResult(
            "disk", "failed", found, "free space, or set APPLIANCE_HOME to a folder on another disk"
        )
    return CheckResult("disk", "ok", found)


def folder(home: Path) -> CheckResult:
    """Check that this user can write the data folder and that others cannot read it."""
    existing = _existing(home)
    if not os.access(existing, os.W_OK | os.X_OK):
        fix = "change its owner to the user who runs the appliance, or set APPLIANCE_HOME to another folder"
        return CheckResult("data folder", "failed", f"{existing} cannot be written", fix)
    if existing == home and home.stat().st_mode & 0o077:
        return CheckResult("data folder", "warning", f"other users can read {home}", _FIX, "permissions")
    return CheckResult("data folder", "ok", str(home))


def leftovers(home: Path) -> CheckResult:
    """Check whether an appliance uses the data folder, or has crashed and left worker processes running."""
    lock = home_lock.path(home)
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return CheckResult("other runs", "ok", "no appliance has used this data folder yet")
    except BlockingIOError:
        found = f"an appliance (process {lock.read_text().strip()}) uses this data folder"
        return CheckResult("other runs", "ok", found)
    except OSError as error:
        fix = f"chown -R {os.getuid()} {home}"
        return CheckResult("other runs", "failed", f"{lock}: {error.strerror}", fix)
    workers = repair.recorded_worker_pids(home)
    if workers:
        found = f"an appliance crashed and may have left worker processes: {', '.join(map(str, workers))}"
        return CheckResult(
            "other runs", "warning", found, f"{_FIX} (or the next `appliance serve`)", "leftovers"
        )
    if folders := repair.unfinished(home):
        found = f"interrupted backups or builds have left {', '.join(map(str, folders))}"
        return CheckResult("other runs", "warning", found, _FIX, "leftovers")
    return CheckResult("other runs", "ok", "earlier runs have left nothing behind")


def database(config: Config, home: Path) -> Iterator[CheckResult]:
    """Check that a database on PostgreSQL answers, and can be read and written."""
    if config.store.url is None:
        return
    store = Store(home / DATABASE, url=config.store.url)
    try:
        asyncio.run(_opened(store, store.check))
    except StoreError as error:
        fix = "check store.url in models.yaml, the password, and that the server runs"
        yield CheckResult("database", "failed", str(error), fix)
    else:
        yield CheckResult("database", "ok", f"{store.name} can be written and read")


async def _opened(store: Store, action: Callable[[], Awaitable[T]]) -> T:
    await store.open()
    try:
        return await action()
    finally:
        await store.close()


async def _known_bucket(config: Config, home: Path) -> tuple[str | None, bool]:
    """Return the id that is also in the bucket of files.s3, and whether there are objects in the bucket."""
    path = home / DATABASE
    if config.store.url is None:
        return snapshot.bucket_id(path) if path.exists() else (None, False)
    store = Store(path, url=config.store.url)

    async def read() -> tuple[str | None, bool]:
        return await store.files.known_secret(BUCKET_ID), bool(await store.files.objects.counts())

    return await _opened(store, read)


def stored_files(home: Path) -> Iterator[CheckResult]:
    """Compare the database with the stored files, unless a running appliance changes both."""
    if not (home / "appliance.db").is_file() or home_lock.is_taken(home):
        return
    try:
        lost, unknown = repair.missing(home), repair.unreferenced(home)
    except EncryptionError as error:  # the data is intact, and the message says what to do
        yield CheckResult("stored files", "failed", str(error))
        return
    except ApplianceError as error:
        fix = "run `appliance restore` with a backup into a new folder"
        yield CheckResult("stored files", "failed", str(error) or error.detail, fix)
        return
    if lost:
        found = f"{len(lost)} files are missing, such as {home / lost[0]}"
        fix = (
            "restore these files from a backup; otherwise the predictions and versions that refer to them "
            "stay incomplete"
        )
        yield CheckResult("stored files", "warning", found, fix)
    if unknown:
        total = readable_bytes(sum(map(repair.size, unknown)))
        found = f"{len(unknown)} files and folders ({total}) to which nothing refers, such as {unknown[0]}"
        yield CheckResult("stored files", "warning", found, _FIX, "files")
    if not lost and not unknown:
        yield CheckResult("stored files", "ok", "the database and the files agree")


def listening_port(bind_address: str, port: int) -> CheckResult:
    """Check that the port is free; if not, name the process that listens there."""
    shown = host_and_port(bind_address, port)
    try:
        family, address = socket_address(bind_address, port)
    except ApplianceError as error:
        return CheckResult("port", "failed", error.detail, "change server.host")
    except OSError as error:
        return CheckResult("port", "failed", f"{shown}: {error.strerror}", "change server.host")
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            listener = holder(port)
            fix = "stop the process (perhaps a running appliance), or set APPLIANCE_PORT to another port"
            found = f"{shown}: {error.strerror}" + (f" by {listener}" if listener else "")
            return CheckResult("port", "warning", found, fix)
    return CheckResult("port", "ok", f"{shown} is free")


def holder(port: int) -> str | None:
    """Return the process that listens on ``port`` as "name (process 1)"; None if this user may not see it."""
    # The process has just ended, or the connections cannot be read.
    with contextlib.suppress(psutil.Error, OSError, RuntimeError):
        for connection in psutil.net_connections("tcp"):
            listens = (
                connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            )
            if listens and connection.pid is not None:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return None


def open_files() -> CheckResult:
    """Check how many files and sockets a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        return CheckResult("open files", "ok", f"{soft} per process")
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    return CheckResult("open files", "warning", f"{soft} per process", f"ulimit -n {FILES} (at most {most})")


def shared_memory(mount: Path) -> CheckResult:
    """Check the free shared memory for Ray's object store."""
    if not mount.is_dir():
        return CheckResult("shared memory", "failed", f"there is no {mount}", f"mount a tmpfs at {mount}")
    if not os.access(mount, os.W_OK | os.X_OK):
        fix = f"mount a writable tmpfs at {mount} (docker: --shm-size=1g)"
        return CheckResult("shared memory", "failed", f"{mount} cannot be written", fix)
    free = shutil.disk_usage(mount).free
    found = f"{readable_bytes(free)} free at {mount}"
    if free < SHARED_MEMORY:
        fix = "make it larger (docker: --shm-size=1g), or remove files that crashed programs left there"
        return CheckResult("shared memory", "failed", found, fix)
    return CheckResult("shared memory", "ok", found)


def downloads(config: Config, home: Path) -> Iterator[CheckResult]:
    """Check for each model whether its weights are downloaded, and its environment is built."""
    runs_models = config.hardware.devices != "none"
    for model in with_downloads(config.models):
        if not runs_models and (reason := head_only(model)) is not None:
            found = f"{model.name}: {reason}: it runs only on the head of the cluster, {NO_MODELS}"
            yield CheckResult("model", "warning", found, f"remove it, or {LET_HEAD_RUN}")
            continue
        if model.environment is not None:
            yield _environment(model, home)
        if model.source is None:
            continue
        try:
            present = weights.present(home, model)
        except WeightsError as error:
            yield CheckResult(
                "weights",
                "failed",
                error.detail,
                "make the files readable, or download them again",
            )
            continue
        if present:
            yield CheckResult("weights", "ok", f"{model.name}: at {weights.folder(home, model)}")
        else:
            name = "" if model.kind == "component" else f" {model.name}"
            fix = f"appliance pull{name} (`appliance serve` downloads them as well)"
            yield CheckResult("weights", "warning", f"{model.name}: not downloaded yet", fix)


def identity_provider(config: Config) -> Iterator[CheckResult]:
    """Check that the identity provider answers, and that people reach the appliance over HTTPS."""
    oidc, public_url = config.sign_on.oidc, config.server.public_url
    if oidc is None or public_url is None:
        return
    try:
        asyncio.run(discover(oidc))
    except ApplianceError as error:
        yield CheckResult(
            "identity provider", "failed", error.detail, "check sign_on.oidc.issuer in models.yaml"
        )
        return
    url = urlsplit(public_url)
    if url.scheme != "https" and not is_loopback(url.hostname or ""):
        found = f"{oidc.issuer} answers, but server.public_url is http: others can read codes and cookies"
        fix = "set server.tls, or use a reverse proxy with TLS"
        yield CheckResult("identity provider", "warning", found, fix)
    else:
        yield CheckResult("identity provider", "ok", f"{oidc.issuer} answers")


def bucket(config: Config, home: Path) -> Iterator[CheckResult]:
    """Check that objects can be written to the bucket of ``files.s3``, read, and deleted.

    The bucket must also be the one that this appliance has used before.
    """
    if config.files.s3 is None:
        return
    from appliance.gateway.files import bucket_mark
    from appliance.gateway.files.bucket import Bucket  # needs a library that is optional

    async def check(settings: S3Config) -> str | None:
        opened = Bucket(settings)
        try:
            await opened.check()
            found = await bucket_mark.read(opened)
        finally:
            opened.close()
        return found

    url = config.files.s3.url
    try:
        found = asyncio.run(check(config.files.s3))
        expected, used = asyncio.run(_known_bucket(config, home))
    except (BucketUnavailable, StoreError) as error:
        yield CheckResult("bucket", "failed", str(error))
    except ApplianceError as error:
        yield CheckResult("bucket", "failed", error.detail)
    else:
        if (problem := bucket_mark.problem(url, found, expected, used=used)) is not None:
            yield CheckResult("bucket", "failed", problem)
        else:
            yield CheckResult("bucket", "ok", f"{url} can be written and read")


def _environment(model: ModelConfig, home: Path) -> CheckResult:
    try:
        environments.require(home, model)
    except WeightsError as error:
        fix = f"appliance pull {model.name} (`appliance serve` builds it as well)"
        return CheckResult("environment", "warning", error.detail, fix)
    python = environments.interpreter(home, model)
    return CheckResult("environment", "ok", f"{model.name}: Python at {python}")


def _existing(path: Path) -> Path:
    """Return ``path`` or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
