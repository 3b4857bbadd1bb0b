"""Finds Pythons of this machine, and downloads others with uv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from appliance.builds.build_process import BuildProcess
from appliance.domain.errors import WeightsError


class Interpreter(NamedTuple):
    """A Python."""

    path: str
    version: str  # such as 3.11.7


def find(version: str, build: BuildProcess, key: str) -> Interpreter:
    """Return a Python of ``version``, such as 3.11 or 3.11.7; if the patch version is missing, another one.

    uv downloads Python if this machine has none of the minor version. ``key`` is the key with the version,
    for error messages.

    Raises:
        WeightsError: there is none, and it cannot be downloaded.
    """
    minor = ".".join(version.split(".")[:2])
    found: dict[str, str] = {}  # version -> path, best first
    for candidate in _candidates(minor):
        known = _version(candidate)
        if known.startswith(f"{minor}."):
            found.setdefault(known, str(candidate))
    if version in found:
        return Interpreter(found[version], version)
    if found:
        known, path = next(iter(found.items()))
        return Interpreter(path, known)
    uv = [sys.executable, "-m", "uv", "python"]
    build.step(f"downloading Python {version}")
    try:
        build.run([*uv, "install", "--no-bin", "--quiet", version], build.folder)
    except WeightsError as error:
        build.say(error.detail)
        raise build.error(
            f"{key} {version} is not on this machine, and cannot be downloaded: install it, for example with "
            f"`pyenv install {minor}`"
        ) from error
    managed = ["--managed-python", "--no-project", version]
    done = subprocess.run([*uv, "find", *managed], capture_output=True, text=True, check=True)
    return Interpreter(done.stdout.strip(), version)


def is_present(minor: str) -> bool:
    """Return whether a Python of a minor version, such as 3.11, is on this machine.

    Its program is not started to check this.
    """
    return any(candidate.exists() for candidate in _candidates(minor))


def _candidates(minor: str) -> Iterator[Path]:
    """Yield Pythons that may have this version: the appliance's, those of pyenv, and one on PATH."""
    yield Path(sys.base_prefix, "bin", f"python{minor}")
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    patches = [each for each in versions.glob(f"{minor}.*") if each.name.rpartition(".")[2].isdecimal()]
    for folder in sorted(patches, key=lambda each: -int(each.name.rpartition(".")[2])):
        yield folder / "bin" / f"python{minor}"
    if (program := shutil.which(f"python{minor}")) is not None:
        yield Path(program)


def _version(path: Path) -> str:
    """Return the version of a Python, such as 3.8.18, or an empty string if it does not run."""
    try:
        script = "import platform; print(platform.python_version())"
        done = subprocess.run(
            [str(path), "-c", script], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
