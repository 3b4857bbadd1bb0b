"""Wheels for the environments of models (the key `environment` of models.yaml).

A bundle has one folder of wheels for each environment, with the packages that the appliance does not have, or
has in another version. ``place`` builds the environments from them on the other machine.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from appliance.builds import environments, package_index
from appliance.bundle import toolchain, wheels
from appliance.bundle.wheels import BundledWheel, Index
from appliance.config import ModelConfig
from appliance.domain.errors import ApplianceError, WeightsError

#: Folder of the environments in a bundle.
FOLDER: Final = "environments"


def check(model: ModelConfig) -> None:
    """Check that a bundle can contain the environment of a model, or that the model has none.

    Raises:
        ApplianceError: the environment needs another Python, or a package that is not in a package index.
    """
    wanted = model.environment
    if wanted is None:
        return
    advice = "leave the model out by naming the other models with --models"
    if wanted.python not in {None, toolchain.VERSION}:
        raise ApplianceError(
            f"model {model.name}: its environment needs Python {wanted.python}, and a bundle contains only "
            f"Python {toolchain.VERSION}: {advice}, or change its key environment.python"
        )
    for text in wanted.requirements:
        if Requirement(text).url is not None:
            raise ApplianceError(
                f"model {model.name}: environment.requirements has {text!r}, and a bundle contains only "
                f"packages of a package index: {advice}, or name the version, such as "
                f'"{Requirement(text).name}==1.0"'
            )


def check_variant(models: list[ModelConfig], variant: str, root: Path = toolchain.CHECKOUT) -> None:
    """Check that this appliance is installed as ``variant``, because environments are built on its packages.

    ``root`` is the checkout with the lock files.

    Raises:
        ApplianceError: a model has an environment, and the bundle is for the other variant, or a package that
            the environment uses is installed here in another version than the lock file has.
    """
    installed = "cpu" if "+cpu" in metadata.version("torch") else "gpu"
    for model in models:
        if model.environment is not None and variant != installed:
            raise ApplianceError(
                f"model {model.name}: a bundle for {variant} cannot contain its environment, because this "
                f"appliance is installed for {installed}: run `appliance bundle` in an installation for "
                f"{variant}, or name the other models with --models"
            )
    if any(model.environment is not None for model in models):
        _check_versions(models, root / "requirements" / f"{variant}.lock")


def _check_versions(models: list[ModelConfig], lock: Path) -> None:
    """Check that the packages for environments are installed in the versions of the lock file.

    The wheels for an environment are those that differ from the packages installed here, and the other
    machine gets the packages of the lock file. Packages that the lock file does not have are not checked.
    """
    pins = _pins(lock)
    for model in models:
        if model.environment is None:
            continue
        for name, version in environments.inherited(model.kind).items():
            if name in pins and not pins[name].contains(version, prereleases=True):
                raise ApplianceError(
                    f"model {model.name}: a bundle cannot contain its environment, because {name} is "
                    f"installed here in version {version}, and {lock.name} has {str(pins[name])[2:]}: "
                    "run scripts/install"
                )


def _pins(lock: Path) -> dict[str, SpecifierSet]:
    """Return the version of each package of a lock file for this Python and platform, as ``==version``."""
    found: dict[str, SpecifierSet] = {}
    for line in lock.read_text(encoding="utf-8").split("\n"):
        if line[:1].isalnum():
            required = Requirement(line.rstrip("\\ "))
            if required.marker is None or required.marker.evaluate():
                found[canonicalize_name(required.name)] = required.specifier
    return found


def folder(model: ModelConfig) -> str:
    """Return the folder of the wheels for the model's environment in a bundle; models can share it."""
    assert model.environment is not None, "the caller has checked that the model has an environment"
    facts = [model.kind, sorted(model.environment.requirements)]
    return f"{FOLDER}/{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"


def resolve(home: Path, models: list[ModelConfig], index: Index) -> dict[str, list[BundledWheel]]:
    """Build the environments of ``models`` here, and return the wheels for each by their folder.

    Raises:
        ApplianceError: an environment cannot be built, or a package has no wheel.
    """
    found: dict[str, list[BundledWheel]] = {}
    for model in models:
        if model.environment is None or folder(model) in found:
            continue
        try:
            environments.build(home, model)
            found[folder(model)] = _wheels(home, model, index)
        except WeightsError as error:
            raise ApplianceError(error.detail) from error
        except ApplianceError as error:
            raise ApplianceError(
                f"the environment of model {model.name} cannot be in a bundle: {error.detail}"
            ) from error
    return found


def _wheels(home: Path, model: ModelConfig, index: Index) -> list[BundledWheel]:
    """Return the wheels of the packages that the environment adds to, or replaces in, the appliance's own."""
    pins = [
        f"{change.name}=={change.version}"
        for change in environments.changes(home, model)
        if change.version is not None
    ]
    if not pins:
        return []
    cpu = "+cpu" in metadata.version("torch")
    with tempfile.TemporaryDirectory() as place:
        given, lock = Path(place) / "packages.txt", Path(place) / "packages.lock"
        given.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        command = [toolchain.uv_program(), "pip", "compile", "--quiet", "--no-deps", "--generate-hashes"]
        command += [*package_index.torch_options(cpu=cpu), "--python", sys.executable]
        command += ["--output-file", str(lock), str(given)]
        wheels.run_uv(command, "its packages cannot be looked up", cpu=cpu)
        return wheels.resolve(lock, toolchain.uv_program(), index, cpu=cpu)
