"""Builds Cog projects.

A build is a folder with a copy of the project, a Python environment, and the schemas of the project's inputs
and output. The folder's name contains a hash of the project, and the folder exists only when the build is
complete. The project itself is not changed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from appliance.config import BuiltCogOptions, CogModel, FolderSource, GitSource, ModelConfig, yaml_source
from appliance.domain.errors import ConfigError, WeightsError
from appliance.machine.processes import is_running
from appliance.runners.child_environment import without_secrets
from appliance.runners.cog.installed_modules import install_modules
from appliance.weights import git
from appliance.weights.fingerprint import fingerprint

_log = logging.getLogger(__name__)

#: Version of the ``cog`` package, which runs the project; part of the name of a build.
COG: Final = "0.23.1"
#: Version of the layout of builds; part of the name of a build.
_FORMAT: Final = 4
DESCRIPTION: Final = "build.json"
#: Prefix of lines in the log of a build that name the next step; other lines are output of tools.
STEP: Final = "==> "
PROJECT: Final = "project"
TRAINING: Final = "training"
_ENVIRONMENT: Final = "venv"
_PACKAGES: Final = "packages.txt"
_IGNORED: Final = shutil.ignore_patterns(".git", ".cog", "__pycache__", ".venv", "venv", "*.pyc")
_TIMEOUT: Final = 1800.0  # seconds for installing, and for describing
_TAIL: Final = 2000  # characters of the output of a command in an error message
_PIPE: Final = 65536  # bytes that a pipe holds
_INTERVAL: Final = 500  # milliseconds between checks whether a silent process has ended
#: Key of cog.yaml that the appliance reads -> its type.
_KEY_TYPES: Final[dict[str, type]] = {
    "build": dict,
    "build.python_packages": list,
    "build.python_requirements": str,
    "build.system_packages": list,
    "environment": list,
    "concurrency": dict,
    "concurrency.max": int,
}
_TYPE_NAMES: Final = {dict: "a mapping", list: "a list", str: "text", int: "a whole number"}


def folder(home: Path, model: ModelConfig) -> Path:
    """Return the folder of the build of a Cog model, which may not exist yet."""
    assert isinstance(model, CogModel), "only Cog models have a project"
    if isinstance(model.options, BuiltCogOptions):
        return Path(model.options.build)
    return root(home) / f"{fingerprint(_source(home, model))}-{COG}-{_FORMAT}"


def content(build: Path) -> str:
    """Return the hash of the project, which is part of the name of its build."""
    return build.name.partition("-")[0]


def _source(home: Path, model: CogModel) -> Path:
    """Return the project's folder. If it is in a git repository, it does not exist before ``git.fetch``."""
    source = model.source
    return git.project(home, source) if isinstance(source, GitSource) else source.path


def python(build: Path) -> Path:
    return build / _ENVIRONMENT / "bin" / "python"


def described(build: Path) -> dict[str, Any]:
    """Return the description of the project in its build.

    Raises:
        WeightsError: the project is not built, or the build is damaged.
    """
    try:
        found: dict[str, Any] = json.loads((build / DESCRIPTION).read_bytes())
    except OSError as error:
        raise WeightsError(f"the Cog project has no build at {build}: run `appliance pull`") from error
    except ValueError as error:
        raise WeightsError(
            f"the Cog project's build at {build} is damaged: remove it and run `appliance pull`"
        ) from error
    return found


def built(model: CogModel, build: Path) -> CogModel:
    """Return ``model`` with the options that the build of its project determines.

    Raises:
        WeightsError: the project is not built, or the build is damaged.
    """
    found = described(build)
    options = model.options.model_dump() | {"build": str(build), "trains": "training" in found}
    options["concurrency"] = model.options.concurrency or found["concurrency"]
    return model.model_copy(update={"options": BuiltCogOptions.model_validate(options)})


def pushed(name: str, build: Path, memory: int | None) -> tuple[CogModel, str]:
    """Return a model for the build of a pushed project, and the model's ``locations.revision``.

    Raises:
        WeightsError: the project is not built, or the build is damaged.
    """
    model = CogModel.model_construct(
        name=name, kind="cog", source=FolderSource(path=build / PROJECT), memory=memory
    )
    return built(model, build), f"folder:{content(build)}"


def root(home: Path) -> Path:
    return home / "cog"


def unpacked(home: Path, name: str) -> Path:
    """Return the folder of a pushed project during its build."""
    return root(home) / f".pushed.{name}.{os.getpid()}"


def unfinished(home: Path) -> list[Path]:
    """Return the folders of unfinished builds whose process has ended; their names begin with a dot."""
    found = []
    for folder in root(home).glob(".*"):
        pid = folder.name.rpartition(".")[2]
        if not (pid.isdecimal() and is_running(int(pid))):
            found.append(folder)
    return found


def sweep(home: Path) -> None:
    """Remove unfinished builds, unless the process that builds still runs."""
    for folder in unfinished(home):
        shutil.rmtree(folder, ignore_errors=True)


def build(home: Path, model: CogModel, say: Callable[[str], None] = lambda _line: None) -> Path:
    """Build the project unless its build exists, and return the folder of the build.

    ``say`` gets a line for each step, and every line that a tool prints.

    Raises:
        WeightsError: the build failed; the message has the output of the tool.
    """
    if isinstance(model.source, GitSource):
        say(f"{STEP}fetching {model.source.git}")
        git.fetch(home, model.source)
    project = _source(home, model)
    settings = _settings(model.name, project)
    target = folder(home, model)
    if target.exists():
        say(f"{STEP}the project is built already")
        return target
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        shutil.copytree(project, unfinished / PROJECT, ignore=_IGNORED)
        _install(model.name, settings, unfinished, say)
        say(f"{STEP}reading the inputs and the output of the project")
        description = _describe(model.name, settings, unfinished, say)
        _publish(description, unfinished)
        relocate(unfinished, unfinished, target)
        unfinished.rename(target)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and target.exists():  # another process was faster
            return target
        raise
    return target


def _settings(name: str, project: Path) -> dict[str, Any]:
    """Return the content of ``cog.yaml``.

    Raises:
        WeightsError: the file is missing, names no handler, or has a key of the wrong type.
    """
    file = project / "cog.yaml"
    if not file.exists():
        raise WeightsError(f"model {name}: {project} has no cog.yaml: add one, or correct the source")
    try:
        found = yaml_source.read(file).data
    except ConfigError as error:
        raise WeightsError(f"model {name}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("run", found.get("predict")), str):
        raise WeightsError(f'model {name}: {file} needs the key run (or predict), such as "run.py:Runner"')
    for key, kind in _KEY_TYPES.items():
        value: Any = found
        for level in key.split("."):
            value = (value or {}).get(level)
        if value is not None and not isinstance(value, kind):
            raise WeightsError(f"model {name}: {file}: {key} should be {_TYPE_NAMES[kind]}")
    return found


def _install(name: str, settings: dict[str, Any], build: Path, say: Callable[[str], None]) -> None:
    """Make a Python environment with the requirements of the project, and Cog's runtime."""
    section = settings.get("build") or {}
    version = str(section.get("python_version") or f"{sys.version_info.major}.{sys.version_info.minor}")
    uv = [sys.executable, "-m", "uv"]
    environment = build / _ENVIRONMENT
    say(f"{STEP}making an environment with Python {version}")
    venv = [*uv, "venv", "--quiet", "--relocatable", "--python", version, str(environment)]
    _run(name, venv, build, say)
    packages = [f"cog=={COG}", *map(str, section.get("python_packages") or ())]
    # In a requirements file, because lines such as "-e ./package" are allowed there.
    (build / _PACKAGES).write_text("".join(f"{package}\n" for package in packages), encoding="utf-8")
    requirements = ["--requirement", str(build / _PACKAGES)]
    if section.get("python_requirements"):
        packages.append(f"the packages in {section['python_requirements']}")
        requirements += ["--requirement", str(build / PROJECT / section["python_requirements"])]
    say(f"{STEP}installing {' '.join(packages)}")
    install = [*uv, "pip", "install", "--no-progress", "--compile-bytecode", "--python", str(python(build))]
    _run(name, [*install, *requirements], build / PROJECT, say)  # relative paths start there
    install_modules(environment)
    _report_missing(name, [str(each) for each in section.get("system_packages") or ()], say)


def relocate(build: Path, before: Path, after: Path) -> None:
    """Replace the path ``before`` of a build by ``after``, in the files of editable packages.

    Files outside the build, to which links may lead, are not changed.
    """
    inside = build.resolve()
    for packages in (build / _ENVIRONMENT / "lib").glob("python*/site-packages"):
        for pattern in ("*.pth", "*editable*.py", "*.dist-info/direct_url.json"):
            for file in packages.glob(pattern):
                if not file.resolve().is_relative_to(inside):
                    continue
                content = file.read_bytes()
                if os.fsencode(before) in content:
                    file.write_bytes(content.replace(os.fsencode(before), os.fsencode(after)))


def _report_missing(name: str, packages: list[str], say: Callable[[str], None]) -> None:
    """Report system packages of the project that are not installed. The project may work without them."""
    if (query := shutil.which("dpkg-query")) is None:
        return
    for package in packages:
        if subprocess.run([query, "--status", package], capture_output=True, check=False).returncode != 0:
            say(f"the system package {package} is not installed; if the project fails, install it")
            _log.warning("model %s: its system package %s is not installed: install it", name, package)


def _describe(name: str, settings: dict[str, Any], build: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the description of the project. This runs the project's code."""
    handler = str(settings.get("run", settings.get("predict")))
    description = _interface(name, handler, build, say)
    if isinstance(settings.get("train"), str):
        training = _interface(name, settings["train"], build, say)
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


def _interface(name: str, handler: str, build: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run ``describe_cog.py`` for a handler, and return the description of the handler.

    The script writes the description to a file, because its standard output has the text of the project.
    """
    script = Path(__file__).with_name("describe_cog.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "description.json")
        _run(name, [str(python(build)), str(script), handler, str(file)], build / PROJECT, say)
        try:
            found: dict[str, Any] = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"model {name}: its Cog project cannot be built: "
                f"the process ended during the import of {handler}"
            ) from error
    return found


def _publish(description: dict[str, Any], build: Path) -> None:
    """Write the description into the build, and the schemas to the files that Cog's runtime reads.

    The runtime reads schemas of predictions and of trainings from the same path in the project's folder, so
    trainings have a copy of the folder.
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
        # Without this key the runtime does not stream its events, which the runner needs.
        "paths": {"/predictions": {"post": {"x-cog-streaming": True}}},
        "components": {
            "schemas": {
                "Input": interface["input"],
                "Output": interface["output"],
                **interface["components"],
            }
        },
    }
    file = project / ".cog" / "openapi_schema.json"
    file.parent.mkdir()
    file.write_text(json.dumps(document))


def _run(name: str, command: list[str], cwd: Path, say: Callable[[str], None]) -> None:
    """Run a command, pass each line that it prints to ``say``, and kill child processes that remain.

    Raises:
        WeightsError: the command failed or took too long; the message has the end of its output.
    """
    variables = without_secrets()
    variables.pop("VIRTUAL_ENV", None)  # the project has its own environment
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    output: deque[str] = deque(maxlen=100)
    deadline = time.monotonic() + _TIMEOUT
    with process:
        try:
            for line in _lines(process, deadline):
                output.append(line)
                say(line)
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise WeightsError(
                f"model {name}: its Cog project cannot be built: {command[0]} ran longer than {_TIMEOUT:g} s"
            ) from error
        finally:  # also at Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        reason = "\n".join(output).strip()[-_TAIL:] or f"{command[0]} ended with code {code}"
        raise WeightsError(f"model {name}: its Cog project cannot be built: {reason}")


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """Yield the lines that a process prints until it ends. Lines longer than a pipe are split.

    The end of the pipe is not awaited, because child processes may keep the pipe open.

    Raises:
        TimeoutError: ``deadline`` (of ``time.monotonic``) has passed.
    """
    assert process.stdout is not None, "the process was started with a pipe"
    os.set_blocking(process.stdout.fileno(), False)
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    rest, ended, chunk = b"", False, None
    while chunk != b"" and not ended:
        ended = process.poll() is not None
        chunk = os.read(process.stdout.fileno(), _PIPE) if poll.poll(0 if ended else _INTERVAL) else None
        *lines, rest = (rest + (chunk or b"")).split(b"\n")
        if len(rest) > _PIPE:
            lines, rest = [*lines, rest], b""
        yield from (line.decode(errors="replace").rstrip("\r") for line in lines)
        if time.monotonic() > deadline:
            raise TimeoutError
    if rest:
        yield rest.decode(errors="replace")
