"""Reads ``cog.yaml``. https://cog.run/yaml lists the keys."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance.config import yaml_source
from appliance.domain.errors import ConfigError, WeightsError

#: Version of Cog that runs projects, unless ``cog.yaml`` chooses an older one; part of the name of a build.
COG: Final = "0.23.1"
#: Version of Cog for the Pythons that ``COG`` does not support. It is the last one with a Python server.
OLD_COG: Final = "0.16.12"
_OLD_PYTHONS: Final = ((3, 8), (3, 9))
_NEWEST_PYTHON: Final = (3, 13)
_OLDEST_COG: Final = (0, 8)
_FIRST_COGLET: Final = (0, 17)
#: Key of cog.yaml that the appliance reads -> its type.
_KEY_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "build": (dict,),
    "build.gpu": (bool,),
    "build.pre_install": (list,),
    "build.python_packages": (list,),
    "build.python_requirements": (str,),
    "build.python_version": (str, float, int),
    "build.run": (list,),
    "build.sdk_version": (str, float),
    "build.system_packages": (list,),
    "environment": (list,),
    "concurrency": (dict,),
    "concurrency.max": (int,),
    "train": (str,),
}
#: Keys that the appliance cannot honour -> what this means.
_NOT_HONOURED: Final = {
    "build.cuda": "no CUDA is installed: Python packages use the CUDA libraries that they bring",
    "build.cudnn": "no cuDNN is installed: Python packages use the cuDNN libraries that they bring",
    "concurrency.default_target": "there is no autoscaler",
    "image": "no image is built",
    "model": "no image is built",
    "weights": "the folders are not downloaded: put the weights into the project",
}
_SECTIONS: Final = ("build", "concurrency")
_HANDLERS: Final = ("run", "predict")
_TYPE_NAMES: Final = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    int: "a whole number",
    bool: "true or false",
}
_VERSION: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_PIN: Final = re.compile(r"\s*cog\s*==\s*([\w.+-]+)\s*(?:#.*)?")
#: Options of pip that Cog allows behind a package in ``python_packages``.
_OPTION: Final = re.compile(r"\s(--extra-index-url|--index-url|-i|--find-links|-f)[=\s]\s*(\S+)")
_CUDA_WHEEL: Final = re.compile(r"^torch\w*==[\d.]+\+(cu\d+|cpu)\b")
_PYTORCH_INDEX: Final = "https://download.pytorch.org/whl/"
_MOUNT: Final = re.compile(r"\s*--mount=(\S+)\s+")


class ShellCommand(msgspec.Struct, frozen=True):
    """A shell command of ``build.run`` or ``build.pre_install``."""

    key: str  # such as build.run[0]
    text: str
    mounts: tuple[dict[str, Any], ...] = ()


class CogYaml(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``cog.yaml``."""

    handler: str
    handler_key: str  # run or predict
    train: str | None
    gpu: bool
    python: str  # such as 3.11 or 3.11.7
    cog: str  # the version
    requirements: tuple[str, ...]  # lines of a requirements file
    requirements_file: str | None
    system_packages: tuple[str, ...]
    pre_install: tuple[ShellCommand, ...]
    run: tuple[ShellCommand, ...]
    environment: dict[str, str]
    concurrency: int | None
    notes: tuple[str, ...]  # keys that are not honoured

    @property
    def minor(self) -> str:
        """The Python version without its patch number."""
        return ".".join(self.python.split(".")[:2])


def is_coglet(cog: str) -> bool:
    """Return whether this version of Cog runs projects with coglet, and not with its older Python server."""
    found = _VERSION.match(cog)
    return found is not None and (int(found[1]), int(found[2])) >= _FIRST_COGLET


def read(name: str, project: Path) -> CogYaml:
    """Return the content of the project's ``cog.yaml``; ``name`` is the model's name in messages.

    Raises:
        WeightsError: the file is missing, names no handler, or has a value that cannot be used.
    """
    file = project / "cog.yaml"
    if not file.exists():
        raise WeightsError(f"model {name}: {project} has no cog.yaml: add one, or correct the source")
    try:
        found = yaml_source.read(file).data
        return _Reader(found if isinstance(found, dict) else {}, project).read()
    except ConfigError as error:
        raise WeightsError(f"model {name}: {error}") from error
    except ValueError as error:
        raise WeightsError(f"model {name}: {file}: {error}") from error


class _Reader:
    """Checks and converts the values of ``cog.yaml``. Its methods raise ``ValueError``."""

    def __init__(self, data: dict[str, Any], project: Path) -> None:
        self._data = data
        self._project = project
        self._notes: list[str] = []

    def read(self) -> CogYaml:
        for key, kinds in _KEY_TYPES.items():
            value = self._value(key)
            if value is not None and (not isinstance(value, kinds) or (value is True and bool not in kinds)):
                raise ValueError(f"{key} should be {_TYPE_NAMES[kinds[0]]}")
        handler = self._data.get("run", self._data.get("predict"))
        if not isinstance(handler, str):
            raise ValueError('needs the key run (or predict), such as "run.py:Runner"')  # noqa: TRY004 - a key is missing
        self._note_keys()
        python = self._python()
        requirements = self._requirements()
        return CogYaml(
            handler=handler,
            handler_key="run" if "run" in self._data else "predict",
            train=self._value("train"),
            gpu=self._value("build.gpu") is True,
            python=python,
            cog=self._cog(python, requirements),
            requirements=tuple(line for line in requirements if not _PIN.fullmatch(line)),
            requirements_file=self._value("build.python_requirements"),
            system_packages=self._texts("build.system_packages"),
            pre_install=self._commands("build.pre_install"),
            run=self._commands("build.run"),
            environment=dict(each.partition("=")[::2] for each in self._texts("environment")),
            concurrency=self._value("concurrency.max"),
            notes=tuple(self._notes),
        )

    def _value(self, key: str) -> Any:
        value: Any = self._data
        for level in key.split("."):
            value = value.get(level) if isinstance(value, dict) else None
        return value

    def _texts(self, key: str) -> tuple[str, ...]:
        return tuple(map(str, self._value(key) or ()))

    def _note_keys(self) -> None:
        """Note each key that is not honoured."""
        keys = list(self._data)
        for section in _SECTIONS:
            keys += [f"{section}.{key}" for key in self._value(section) or ()]
        for key in keys:
            if key in _NOT_HONOURED and self._value(key) is not None:
                self._notes.append(f"{key}: {_NOT_HONOURED[key]}")
            elif key not in _KEY_TYPES and key not in _HANDLERS and key not in _NOT_HONOURED:
                self._notes.append(f"{key}: the appliance does not know this key")

    def _python(self) -> str:
        value = self._value("build.python_version")
        if value is None:
            return f"{sys.version_info.major}.{sys.version_info.minor}"
        text = "3.10" if value == 3.1 else str(value)  # YAML reads 3.10 without quotes as the number 3.1
        parts = _VERSION.fullmatch(text)
        if parts is None or not _OLD_PYTHONS[0] <= (int(parts[1]), int(parts[2])) <= _NEWEST_PYTHON:
            raise ValueError(f"build.python_version {text} is not supported: choose 3.8 to 3.13")
        return text

    def _requirements(self) -> list[str]:
        """Return the lines of ``python_packages``. Options that follow a package get lines of their own."""
        options: list[str] = []
        packages = []
        for line in self._texts("build.python_packages"):
            options += [f"{option} {value}" for option, value in _OPTION.findall(line)]
            package = _OPTION.sub("", line).strip()
            packages.append(package)
            if (wheel := _CUDA_WHEEL.match(package)) is not None:  # as Cog does
                options.append(f"--extra-index-url {_PYTORCH_INDEX}{wheel[1]}")
        return [*dict.fromkeys(options), *packages]

    def _cog(self, python: str, requirements: list[str]) -> str:
        """Return the version of Cog that the project asks for, or the default for its Python."""
        lines = list(requirements)
        file = self._value("build.python_requirements")
        if file is not None:
            path = self._project / file
            if not path.is_file():
                raise ValueError(f"build.python_requirements: {file} is missing in the project")
            lines += path.read_text(encoding="utf-8", errors="replace").split("\n")
        old = tuple(map(int, python.split(".")[:2])) in _OLD_PYTHONS
        asked = self._value("build.sdk_version")
        key = "build.sdk_version"
        if asked is None:
            asked = next((pin[1] for line in lines if (pin := _PIN.fullmatch(line))), None)
            key = "the package cog"
        default = OLD_COG if old else COG
        if asked is None:
            return default
        parts = _VERSION.match(str(asked))
        if parts is None:
            self._notes.append(f"{key} {asked}: it is not a version; {default} is used")
            return default
        if (int(parts[1]), int(parts[2])) < _OLDEST_COG:
            raise ValueError(f"{key} {asked} is not supported: choose 0.8.0 or a later version")
        if not is_coglet(str(asked)):
            return str(asked)
        if old:
            raise ValueError(f"{key} {asked} needs Python 3.10 or later: change build.python_version")
        if asked != COG:
            self._notes.append(f"{key} {asked}: Cog {COG} is used")
        return COG

    def _commands(self, key: str) -> tuple[ShellCommand, ...]:
        commands = []
        for number, value in enumerate(self._value(key) or ()):
            place = f"{key}[{number}]"
            text, mounts = (
                (value.get("command"), value.get("mounts")) if isinstance(value, dict) else (value, ())
            )
            if not isinstance(text, str):
                raise ValueError(f"{place} should be text, or a mapping with the key command")  # noqa: TRY004 - as above
            found = [each for each in mounts or () if isinstance(each, dict)]
            while (option := _MOUNT.match(text)) is not None:  # the older form
                found.append(dict(part.partition("=")[::2] for part in option[1].split(",")))
                text = text[option.end() :]
            for mount in found:
                if mount.get("type") == "cache":
                    self._notes.append(f"{place}: the mount {mount.get('target')} of type cache")
                else:
                    raise ValueError(
                        f"{place} needs a mount of type {mount.get('type')}, which only `cog build` supports"
                        ": remove the mount, or build an image and name it in source.image"
                    )
            commands.append(ShellCommand(key=place, text=text, mounts=tuple(found)))
        return tuple(commands)
