"""Chooses and downloads the wheels of a lock file for this Python and processor.

uv resolves the lock to URLs, sizes and hashes of wheels, with the indexes that ``scripts/install`` uses.
Downloading them one by one, instead of with `pip download`, gives the size beforehand, resumes within a file,
and prefers wheels for an old glibc, because the other machine may have an older one than this machine.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import httpx
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from rich.progress import Progress, TaskID

from appliance.builds import package_index
from appliance.domain.errors import ApplianceError, WeightsError
from appliance.weights import http_download, index

#: Oldest minor version of glibc 2 that the appliance supports.
OLDEST_GLIBC: Final = 28
#: Oldest glibc that wheels are made for, and the names of its platforms before PEP 600.
_FIRST_GLIBC: Final = 5
_LEGACY: Final = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_REQUIREMENT: Final = re.compile(r"^([a-z0-9._-]+)==([^ ;\\]+)")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class BundledWheel(NamedTuple):
    """A wheel of the bundle, which may not be downloaded yet."""

    package: str
    version: str
    name: str  # of the file
    url: str
    sha256: str
    size: int  # bytes
    glibc: int  # minor version of glibc 2 that is enough, at least ``OLDEST_GLIBC``

    @property
    def local(self) -> Path | None:
        """The file, if the wheel comes from a folder of wheels on this machine."""
        return _local(self.url)


class Index:
    """Downloads from package indexes, with one HTTP client for each host."""

    def __init__(self) -> None:
        self._clients: dict[str, httpx.Client] = {}

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients.values():
            client.close()

    def client(self, url: str) -> httpx.Client:
        host = urlsplit(url).netloc
        if host not in self._clients:
            self._clients[host] = index.client(url)
        return self._clients[host]

    def size(self, url: str) -> int:
        """Return the bytes of a file that the index lists without its size.

        Raises:
            ApplianceError: the server does not answer, or does not name the size.
        """
        try:
            answer = self.client(url).head(url)
            answer.raise_for_status()
            return int(answer.headers["Content-Length"])
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise ApplianceError(
                f"the size of the wheel {url} cannot be looked up: {error}: check the network and the proxy"
            ) from error


def resolve(lock: Path, uv: str, index_: Index, *, cpu: bool | None = None) -> list[BundledWheel]:
    """Return the wheels of a lock file that fit this Python and processor.

    ``cpu``: use the package indexes for CPUs. None: only if the lock file has packages for CPUs.

    Raises:
        ApplianceError: uv cannot reach the package index, or a package has no wheel that fits.
    """
    hashes = _hashes(lock)
    found = []
    for package in _locked(lock, uv, cpu=_is_cpu(lock) if cpu is None else cpu):
        key = f"{package['name']}=={package['version']}"
        chosen = _best(package, hashes.get(key, frozenset()))
        if chosen is None:
            raise ApplianceError(
                f"{key} has no wheel for Python {_python()} on {platform.machine()} with a hash in "
                f"{lock.name}: use another Python (scripts/install --python), or another package index"
            )
        wheel, glibc = chosen
        url = str(wheel["url"])
        size = wheel.get("size")
        local = _local(url)
        if size is None:
            size = local.stat().st_size if local else index_.size(url)
        sha256 = wheel["hashes"]["sha256"]
        found.append(
            BundledWheel(package["name"], package["version"], _name(url), url, sha256, int(size), glibc)
        )
    return found


def download(wheels: list[BundledWheel], folder: Path, index_: Index, progress: Progress) -> dict[str, Path]:
    """Download the wheels that ``folder`` does not have yet; return the path of each by its file name.

    Raises:
        ApplianceError: a download fails, or a file has another SHA-256 than the lock says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    task = progress.add_task("packages", total=sum(wheel.size for wheel in wheels))
    done = 0
    paths = {}
    for wheel in wheels:
        progress.update(task, description=f"packages: {wheel.package}")
        paths[wheel.name] = path = wheel.local or folder / wheel.name
        if wheel.local is not None:
            _check(wheel, path)
        elif not (path.exists() and http_download.sha256_of(path) == wheel.sha256):
            http_download.fetch(
                index_.client(wheel.url),
                wheel.url,
                path,
                wheel.sha256,
                functools.partial(_advance, progress, task, done),
                listed_in="the lock file",
            )
        done += wheel.size
        progress.update(task, completed=done)
    progress.update(task, description="packages: ready")
    return paths


def _advance(progress: Progress, task: TaskID, before: int, have: int, _total: int | None) -> None:
    progress.update(task, completed=before + have)


def missing(wheels: list[BundledWheel], folder: Path) -> int:
    """Return the bytes that ``download`` has to download into ``folder``."""
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.whl")}
    return sum(max(wheel.size - sizes.get(wheel.name, 0), 0) for wheel in wheels if wheel.local is None)


def _check(wheel: BundledWheel, path: Path) -> None:
    if http_download.sha256_of(path) != wheel.sha256:
        raise WeightsError(
            f"the wheel {path} does not have the SHA-256 in the lock file, {wheel.sha256}: replace it"
        )


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _hashes(lock: Path) -> dict[str, frozenset[str]]:
    """Return the hashes in a lock file by ``name==version``."""
    found: dict[str, set[str]] = {}
    current: set[str] = set()
    for line in lock.read_text().split("\n"):
        if match := _REQUIREMENT.match(line):
            current = found.setdefault(f"{match[1]}=={match[2]}", set())
        current.update(_HASH.findall(line))
    return {key: frozenset(values) for key, values in found.items()}


def _locked(lock: Path, uv: str, *, cpu: bool) -> list[dict[str, Any]]:
    """Return the packages of a lock file for this platform, with all their wheels, in the form of PEP 751."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "pylock.toml"
        command = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--format", "pylock.toml"]
        command += package_index.torch_options(cpu=cpu)
        command += ["--python", sys.executable, "--output-file", str(output), str(lock)]
        run_uv(command, "the packages cannot be looked up", cpu=cpu)
        return list(tomllib.loads(output.read_text()).get("packages", ()))


def run_uv(command: list[str], problem: str, *, cpu: bool = False) -> None:
    """Run uv with the indexes that ``scripts/install`` uses; if ``cpu``, also with pip's folder of wheels.

    Raises:
        ApplianceError: uv fails; the message begins with ``problem`` and ends with uv's reason.
    """
    variables = package_index.uv_variables(os.environ, cpu=cpu)
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ran.returncode != 0:
        # "error: what failed", and below it "cause: why", several times
        lines = [line.strip() for line in ran.stderr.split("\n") if line.strip()]
        said = [line.partition(": ")[2] for line in lines if line.startswith(("error: ", "cause: "))]
        reason = (
            ": ".join([said[0], *said[1:][-1:]]) if said else (lines or [f"exit code {ran.returncode}"])[-1]
        )
        raise ApplianceError(f"{problem}: {reason}")


def _is_cpu(lock: Path) -> bool:
    return "+cpu" in lock.read_text()


def _best(package: dict[str, Any], hashes: frozenset[str]) -> tuple[dict[str, Any], int] | None:
    """Return the best wheel of a package, and the glibc it needs; None if none fits.

    Wheels for newer versions of glibc than ``OLDEST_GLIBC`` are only taken if there is no other.
    """
    wheels = [each for each in package.get("wheels", ()) if each.get("hashes", {}).get("sha256") in hashes]
    newest = int(platform.libc_ver()[1].partition(".")[2] or OLDEST_GLIBC)
    for glibc in range(OLDEST_GLIBC, max(newest, OLDEST_GLIBC) + 1):
        ranks = {tag: rank for rank, tag in enumerate(_tags(glibc))}
        ranked = []
        for wheel in wheels:
            try:
                tags = parse_wheel_filename(_name(str(wheel["url"])))[3]
            except InvalidWheelFilename:
                continue
            ranked += [(ranks[tag], _name(str(wheel["url"])), wheel) for tag in tags if tag in ranks]
        if ranked:
            return min(ranked, key=lambda each: each[:2])[2], glibc
    return None


def _tags(glibc: int) -> Iterator[Tag]:
    """Yield the tags of wheels that fit this Python with a glibc 2, the best first."""
    machine = platform.machine()
    platforms = []
    for minor in range(glibc, _FIRST_GLIBC - 1, -1):
        platforms.append(f"manylinux_2_{minor}_{machine}")
        if minor in _LEGACY:
            platforms.append(f"{_LEGACY[minor]}_{machine}")
    platforms.append(f"linux_{machine}")
    version = sys.version_info[:2]
    yield from cpython_tags(version, platforms=platforms)
    yield from compatible_tags(version, f"cp{version[0]}{version[1]}", platforms)


def _local(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])
