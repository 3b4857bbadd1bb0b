"""Builds the Python environments of models that have the key `environment` in models.yaml.

    <home>/environments/<digest>/venv               the environment
    <home>/environments/<digest>/environment.json   the packages that differ from those of the appliance

An environment begins with the packages of the appliance that its kind needs. Their files are hard links, so
they take no space and are not downloaded. uv then installs the packages that the model names, and changes
their dependencies only where they need it. The libraries of the kind keep their version unless the model
names them; a conflict is an error that names both packages. With another version of Python, nothing can be
linked: uv downloads all packages, in the versions of the appliance where these fit.

The digest identifies the requirements and the packages of the appliance: an updated appliance builds new
environments. A folder exists only when it is complete.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import appliance
from appliance.builds import interpreters, package_index
from appliance.builds.build_process import BuildProcess
from appliance.builds.cog_environment import ENVIRONMENT, python, site_packages
from appliance.config import ModelConfig
from appliance.domain.errors import WeightsError
from appliance.machine.processes import is_running
from appliance.runners import KINDS
from appliance.runners.child_environment import without_secrets
from appliance.runners.model_config import Environment

_log = logging.getLogger(__name__)

#: Version of the layout of environments; part of the digest.
_FORMAT: Final = 1
_DESCRIPTION: Final = "environment.json"
_OWN_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
#: Packages that worker processes of all kinds import.
_WORKER_PACKAGES: Final = (
    *("msgspec", "pydantic", "pyyaml", "uvloop", "httpx", "packaging", "psutil"),
    *("pillow", "av", "numpy", "nvidia-ml-py"),
)


class Change(msgspec.Struct, frozen=True):
    """A package whose version differs from that in the appliance."""

    name: str
    version: str | None  # in the environment; None: the environment does not have it
    inherited: str | None  # in the appliance; None: the appliance does not have it, or not for this kind

    def __str__(self) -> str:
        if self.version is None:
            return f"no {self.name}"
        instead = "" if self.inherited is None else f" instead of {self.inherited}"
        return f"{self.name} {self.version}{instead}"


class _Description(msgspec.Struct, frozen=True):
    """The content of ``environment.json``."""

    python: str
    changes: list[Change]


def root(home: Path) -> Path:
    return home / "environments"


def folder(home: Path, model: ModelConfig) -> Path | None:
    """Return the folder of the model's environment, which may not exist yet; None if it has none."""
    wanted = model.environment
    if wanted is None:
        return None
    facts = {
        "format": _FORMAT,
        "requirements": sorted(wanted.requirements),
        "python": wanted.python or _OWN_PYTHON,
        "kind": model.kind,
        "prefix": sys.prefix,
        "inherited": inherited(model.kind),
    }
    text = json.dumps(facts, sort_keys=True)
    return root(home) / hashlib.sha256(text.encode()).hexdigest()[:16]


def is_built(home: Path, model: ModelConfig) -> bool:
    """Return whether the model needs no environment, or its environment is complete."""
    found = folder(home, model)
    return found is None or found.exists()


def interpreter(home: Path, model: ModelConfig) -> str | None:
    """Return the path of the Python of the model's environment; None for the appliance's own."""
    found = folder(home, model)
    return None if found is None else str(python(found))


def require(home: Path, model: ModelConfig) -> None:
    """Do nothing if the model's environment is complete, or the model needs none.

    Raises:
        WeightsError: the environment is not built.
    """
    if not is_built(home, model):
        raise WeightsError(f"the environment of model {model.name} is not built: run `appliance pull`")


def changes(home: Path, model: ModelConfig) -> list[Change]:
    """Return the packages of a built environment that differ from those of the appliance, by name."""
    found = folder(home, model)
    assert found is not None, "the caller has checked that the model has an environment"
    return msgspec.json.decode((found / _DESCRIPTION).read_bytes(), type=_Description).changes


def unfinished(home: Path) -> list[Path]:
    """Return the folders of unfinished environments whose process has ended."""
    owners = [(each, each.name.rpartition(".")[2]) for each in root(home).glob(".*")]
    return [each for each, pid in owners if not (pid.isdecimal() and is_running(int(pid)))]


def build(
    home: Path, model: ModelConfig, say: Callable[[str], None] = _log.debug, *, wheels: Path | None = None
) -> None:
    """Build the model's environment, unless it exists or the model needs none.

    ``say`` gets a line for each step, and every line that a tool prints. ``wheels`` is a folder of packages
    that replaces the package index, so that no network is needed.

    Raises:
        WeightsError: the build failed; the message has the output of uv, which names the package.
    """
    target = folder(home, model)
    if target is None or target.exists():
        return
    assert model.environment is not None
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        cpu = "+cpu" in inherited(model.kind).get("torch", "")
        variables = package_index.uv_variables(without_secrets(), cpu=cpu)
        process = BuildProcess(model.name, partial, say, variables, "environment")
        options = package_index.torch_options(cpu=cpu)
        if wheels is not None:
            options = ["--offline", "--no-index", "--find-links", str(wheels)]
        found = _make(model.kind, model.environment, process, options)
        (partial / _DESCRIPTION).write_bytes(msgspec.json.encode(found))
        partial.rename(target)
    except OSError as error:
        if target.exists():  # another process was faster
            return
        raise WeightsError(
            f"model {model.name}: its environment cannot be stored: {error.filename or partial}: "
            f"{error.strerror}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make(kind: str, wanted: Environment, build: BuildProcess, indexes: list[str]) -> _Description:
    """Make the environment in the folder of ``build``, and return its description."""
    uv = [sys.executable, "-m", "uv"]
    version = wanted.python or _OWN_PYTHON
    path = sys.executable
    if version != _OWN_PYTHON:
        path = interpreters.find(version, build, "environment.python").path
    build.step(f"making an environment with Python {version} ({path})")
    venv = build.folder / ENVIRONMENT
    build.run([*uv, "venv", "--quiet", "--relocatable", "--python", path, str(venv)], build.folder)
    site, own = site_packages(venv), inherited(kind)
    file = build.folder / "requirements.txt"
    file.write_text("".join(f"{each}\n" for each in _lines(kind, wanted)), encoding="utf-8")
    if version == _OWN_PYTHON:
        build.step(f"linking {len(own)} packages of the appliance")
        for name in own:
            _link(metadata.distribution(name), venv, site)
    else:
        file = _resolve(file, own, [*uv, "pip", "compile", "--quiet", "--python", path, *indexes], build)
    build.step(f"installing {' '.join(wanted.requirements) or 'the packages of the appliance'}")
    install = [
        *uv,
        "pip",
        "install",
        "--no-progress",
        "--compile-bytecode",
        "--python",
        str(python(build.folder)),
    ]
    build.run([*install, *indexes, "--requirement", str(file)], build.folder, what="uv pip install")
    (site / "appliance").symlink_to(Path(appliance.__file__).parent, target_is_directory=True)
    now: dict[str, str] = {
        canonicalize_name(each.name): each.version for each in metadata.distributions(path=[str(site)])
    }
    differing = sorted(name for name in {*own, *now} if own.get(name) != now.get(name))
    return _Description(version, [Change(name, now.get(name), own.get(name)) for name in differing])


def _lines(kind: str, wanted: Environment) -> list[str]:
    """Return the lines of the requirements file.

    Packages that the appliance's own code imports stay in the range that it declares. Libraries of the kind
    that the model does not name keep their version.
    """
    own = inherited(kind)
    declared: dict[str, str] = {}
    for text in metadata.requires("appliance") or ():
        required = Requirement(text)
        if required.marker is None:
            declared[canonicalize_name(required.name)] = text
    named = {canonicalize_name(Requirement(each).name) for each in wanted.requirements}
    lines = [*wanted.requirements]
    lines += [declared.get(name, name) for name in _WORKER_PACKAGES if name in own]
    lines += [f"{name}=={own[name]}" for name in KINDS[kind].packages if name in own and name not in named]
    return lines


def _resolve(file: Path, own: dict[str, str], compile: list[str], build: BuildProcess) -> Path:
    """Return a requirements file with all packages for another Python.

    uv keeps the versions that its output file already has, unless a requirement excludes them.
    """
    pinned = file.with_name("pinned.txt")
    pinned.write_text("".join(f"{name}=={version}\n" for name, version in own.items()), encoding="utf-8")
    build.step("choosing the versions of all packages")
    build.run([*compile, "--output-file", str(pinned), str(file)], build.folder, what="uv pip compile")
    return pinned


def _link(distribution: metadata.Distribution, venv: Path, site: Path) -> None:
    """Link the files of an installed package, and their compiled modules, into another environment."""
    for file in distribution.files or ():
        source = Path(str(distribution.locate_file(file)))
        if file.parts[0] != "..":
            _link_file(source, site / file)
            if file.suffix == ".py":
                compiled = Path("__pycache__", f"{file.stem}.{sys.implementation.cache_tag}.pyc")
                _link_file(source.parent / compiled, (site / file).parent / compiled)
        elif source.parent.name == "bin" and not _is_script(source):  # scripts name the appliance's Python
            _link_file(source, venv / "bin" / source.name)


def _link_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(source, target)
    except FileNotFoundError:  # a module that is not compiled, or a file that was removed
        return
    except OSError:  # another disk, or a file of another user
        target.symlink_to(source.resolve())


def _is_script(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(2) == b"#!"
    except OSError:
        return True


def _roots(kind: str) -> list[str]:
    return [*_WORKER_PACKAGES, *KINDS[kind].packages]


@functools.cache
def inherited(kind: str) -> dict[str, str]:
    """Return the installed packages that models of a kind need, and their dependencies: name -> version."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    pending = [(name, frozenset[str]()) for name in _roots(kind)]
    while pending:
        entry = name, extras = pending.pop()
        if entry in seen:
            continue
        seen.add(entry)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of the other variant, or not for this machine
            continue
        if distribution.files is None:
            continue
        found[name] = distribution.version
        pending += _requirements(distribution, extras)
    return dict(sorted(found.items()))


def _requirements(
    distribution: metadata.Distribution, extras: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    for text in distribution.requires or ():
        required = Requirement(text)
        marker = required.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(required.name), frozenset(required.extras)
