"""From a Cog project to something that can be run: a copy, an environment of its own, a description.

All of it lies in one folder that is named after the project's content, and exists only when it is whole. The
project itself is never written to.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from appliance.config import (
    BuiltCogOptions,
    CogModel,
    Config,
    FolderSource,
    GitSource,
    ModelConfig,
    yamlsource,
)
from appliance.errors import ConfigError, WeightsError
from appliance.weights import checkout
from appliance.weights.fingerprint import fingerprint

_log = logging.getLogger(__name__)

#: The version of the ``cog`` package, whose runtime answers; part of a build's identity.
COG: Final = "0.23.1"
#: What else makes a build another one: how it is made here.
_FORMAT: Final = 2
DESCRIPTION: Final = "build.json"
PROJECT: Final = "project"
TRAINING: Final = "training"
_SHIMS: Final = "cog_shims"
_ENVIRONMENT: Final = "venv"
_LEFT_OUT: Final = shutil.ignore_patterns(".git", ".cog", "__pycache__", ".venv", "venv", "*.pyc")
_TIMEOUT: Final = 1800.0  # seconds for installing, and for describing
#: Variables that a project's own programs do not get: another environment, and the operator's tokens.
_NOT_ITS_BUSINESS: Final = frozenset({"VIRTUAL_ENV", "APPLIANCE_TOKEN", "REPLICATE_API_TOKEN"})
_TAIL: Final = 2000  # characters of what a command said that are passed on


def folder(home: Path, model: ModelConfig) -> Path:
    """Where the project is built, or will be."""
    assert isinstance(model, CogModel), "only a Cog model is a project"
    if isinstance(model.options, BuiltCogOptions):
        return Path(model.options.build)
    return root(home) / f"{fingerprint(_source(home, model))}-{COG}-{_FORMAT}"


def content(build: Path) -> str:
    """What tells the project of a build from any other."""
    return build.name.partition("-")[0]


def _source(home: Path, model: CogModel) -> Path:
    """Where the project itself is; one in a repository that is not fetched is nowhere yet."""
    source = model.source
    return checkout.project(home, source) if isinstance(source, GitSource) else source.path


def python(build: Path) -> Path:
    """The project's own Python."""
    return build / _ENVIRONMENT / "bin" / "python"


def described(build: Path) -> dict[str, Any]:
    """What was found out when it was built.

    Raises:
        WeightsError: it is not built.
    """
    try:
        found: dict[str, Any] = json.loads((build / DESCRIPTION).read_bytes())
    except OSError as error:
        raise WeightsError(f"{build} is not built; run: appliance pull") from error
    return found


def completed(config: Config, home: Path) -> Config:
    """``config`` with what Cog projects say themselves filled into their options.

    One that could not be built is left out: what it takes and gives is not known.
    """
    models: list[ModelConfig] = []
    for model in config.models:
        if isinstance(model, CogModel):
            try:
                models.append(built(model, folder(home, model)))
            except WeightsError as error:
                _log.error("model %s is not served: %s", model.name, error)
        else:
            models.append(model)
    return config.model_copy(update={"models": tuple(models)})


def built(model: CogModel, build: Path) -> CogModel:
    """``model`` with what its project said when it was built.

    Raises:
        WeightsError: it is not built.
    """
    found = described(build)
    told = model.options.model_dump() | {"build": str(build), "trains": "training" in found}
    told["concurrency"] = model.options.concurrency or found["concurrency"]
    return model.model_copy(update={"options": BuiltCogOptions.model_validate(told)})


def pushed(name: str, build: Path, memory: int | None) -> tuple[CogModel, str]:
    """A model that is not in models.yaml, whose project is built; and what identifies the project.

    Raises:
        WeightsError: it is not built.
    """
    model = CogModel.model_construct(
        name=name, kind="cog", source=FolderSource(path=build / PROJECT), memory=memory
    )
    return built(model, build), f"folder:{content(build)}"


def root(home: Path) -> Path:
    """The folder of all builds."""
    return home / "cog"


def unpacked(home: Path, name: str) -> Path:
    """Where a project that was pushed lies while it is built."""
    return root(home) / f".pushed.{name}.{os.getpid()}"


def sweep(home: Path) -> None:
    """Remove what builds have left whose process is no more: hidden folders that end in its number."""
    for left in root(home).glob(".*"):
        number = left.name.rpartition(".")[2]
        if not (number.isdecimal() and Path("/proc", number).exists()):
            shutil.rmtree(left, ignore_errors=True)


def _silent(_: str) -> None:
    pass


def build(home: Path, model: CogModel, say: Callable[[str], None] = _silent) -> Path:
    """Make the project runnable; does nothing if it is. ``say`` is told of each step, and what tools print.

    Raises:
        WeightsError: it cannot be; the text is what the tool said.
    """
    if isinstance(model.source, GitSource):
        say(f"fetching {model.source.git}")
        checkout.fetch(home, model.source)
    project = _source(home, model)
    settings = _settings(model.name, project)
    target = folder(home, model)
    if target.exists():
        say("it is built already")
        return target
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        shutil.copytree(project, unfinished / PROJECT, ignore=_LEFT_OUT)
        _install(model.name, settings, unfinished, say)
        say("asking the project what it takes and gives")
        description = _describe(model.name, settings, unfinished, say)
        _publish(description, unfinished)
        unfinished.rename(target)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and target.exists():  # another process was faster
            return target
        raise
    return target


def _settings(name: str, project: Path) -> dict[str, Any]:
    """``cog.yaml``.

    Raises:
        WeightsError: there is none, or it says nothing about what to run.
    """
    file = project / "cog.yaml"
    if not file.exists():
        raise WeightsError(f"model {name}: {project} is no Cog project: it has no cog.yaml")
    try:
        found = yamlsource.read(file).data
    except ConfigError as error:
        raise WeightsError(f"model {name}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("run", found.get("predict")), str):
        raise WeightsError(f'model {name}: {file} needs the key run (or predict), such as "run.py:Runner"')
    return found


def _install(name: str, settings: dict[str, Any], build: Path, say: Callable[[str], None]) -> None:
    """Make the environment with the project's requirements and Cog's runtime."""
    wanted = settings.get("build") or {}
    version = str(wanted.get("python_version") or f"{sys.version_info.major}.{sys.version_info.minor}")
    uv = [sys.executable, "-m", "uv"]
    environment = build / _ENVIRONMENT
    say(f"making an environment with Python {version}")
    venv = [*uv, "venv", "--quiet", "--relocatable", "--python", version, str(environment)]
    _run(name, venv, build, say)
    requirements = [f"cog=={COG}", *map(str, wanted.get("python_packages") or ())]
    if wanted.get("python_requirements"):
        requirements += ["--requirement", str(build / PROJECT / wanted["python_requirements"])]
    say(f"installing {' '.join(requirements)}".replace(f"{build / PROJECT}/", ""))
    install = [*uv, "pip", "install", "--no-progress", "--compile-bytecode", "--python", str(python(build))]
    _run(name, [*install, *requirements], build, say)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    shutil.copy(Path(__file__).with_name(f"{_SHIMS}.py"), packages / f"{_SHIMS}.py")
    (packages / f"{_SHIMS}.pth").write_text(f"import {_SHIMS}\n")
    _tell_missing(name, [str(each) for each in wanted.get("system_packages") or ()], say)


def _tell_missing(name: str, packages: list[str], say: Callable[[str], None]) -> None:
    """Say which of the system packages that the project names are not installed; it may do without."""
    asked = shutil.which("dpkg-query")
    for package in packages if asked is not None else ():
        known = subprocess.run([str(asked), "--status", package], capture_output=True, check=False)
        if known.returncode != 0:
            say(f"the system package {package}, which it wants, is not installed")
            _log.warning("model %s wants the system package %s, which is not installed", name, package)


def _describe(name: str, settings: dict[str, Any], build: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Ask the project what it takes and gives: this runs its code."""
    handler = str(settings.get("run", settings.get("predict")))
    description = _asked(name, handler, build, say)
    if isinstance(settings.get("train"), str):
        training = _asked(name, settings["train"], build, say)
        description["training"] = {"handler": settings["train"], "interface": training["interface"]}
    limits = settings.get("concurrency") or {}
    environment = [str(each).partition("=")[::2] for each in settings.get("environment") or ()]
    packages = [str(each) for each in (settings.get("build") or {}).get("system_packages") or ()]
    return {
        **description,
        "handler": handler,
        "concurrency": int(limits.get("max", description["concurrency"])),
        "environment": dict(environment),
        "system_packages": packages,
    }


def _asked(name: str, handler: str, build: Path, say: Callable[[str], None]) -> dict[str, Any]:
    script = Path(__file__).with_name("describe_cog.py")
    said = _run(name, [str(python(build)), str(script), handler], build / PROJECT, say)
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found


def _publish(description: dict[str, Any], build: Path) -> None:
    """Write the description for us, and the schema where Cog's runtime looks for it.

    A runtime that trains takes its input from the same place as one that predicts, so it gets a folder with
    another schema.
    """
    if "training" in description:
        shutil.copytree(build / PROJECT, build / TRAINING, copy_function=os.link)
        _publish_schema(description["training"]["interface"], build / TRAINING)
    _publish_schema(description["interface"], build / PROJECT)
    (build / DESCRIPTION).write_text(json.dumps(description))


def _publish_schema(interface: dict[str, Any], project: Path) -> None:
    document = {
        "openapi": "3.0.2",
        "info": {"title": "Cog", "version": "0.1.0"},
        # Without this mark the runtime does not stream, and streaming is how the runner hears of everything.
        "paths": {"/predictions": {"post": {"x-cog-streaming": True}}},
        "components": {
            "schemas": {
                "Input": interface["input"],
                "Output": interface["output"],
                **interface["components"],
            }
        },
    }
    place = project / ".cog" / "openapi_schema.json"
    place.parent.mkdir()
    place.write_text(json.dumps(document))


def _run(name: str, command: list[str], cwd: Path, say: Callable[[str], None]) -> str:
    """What a command prints; what it complains goes to ``say``.

    Raises:
        WeightsError: it failed, with the end of what it said.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _NOT_ITS_BUSINESS}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        late = threading.Timer(_TIMEOUT, process.kill)
        late.start()
        said: deque[str] = deque(maxlen=100)
        try:
            with process:
                for line in process.stderr or ():
                    said.append(line)
                    say(line.rstrip())
        except BaseException:  # Ctrl-C too: the process must not go on by itself
            process.kill()
            raise
        finally:
            timely = late.is_alive()
            late.cancel()
        if not timely:
            raise WeightsError(f"model {name}: {command[0]} did not end within {_TIMEOUT:g} s")
        output.seek(0)
        printed = output.read()
    if process.returncode != 0:
        reason = ("".join(said).strip() or printed.strip())[-_TAIL:]
        raise WeightsError(f"model {name}: its Cog project cannot be built: {reason}")
    return printed
