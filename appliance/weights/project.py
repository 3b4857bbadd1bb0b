"""From a Cog project to something that can be run: a copy, an environment of its own, a description.

All of it lies in one folder that is named after the project's content, and exists only when it is whole. The
project itself is never written to.
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

#: The version of the ``cog`` package, whose runtime answers; part of a build's identity.
COG: Final = "0.23.1"
#: What else makes a build another one: how it is made here.
_FORMAT: Final = 4
DESCRIPTION: Final = "build.json"
#: Prefix of lines in a build's log that name the next step; the other lines are output of tools.
STEP: Final = "==> "
PROJECT: Final = "project"
TRAINING: Final = "training"
_ENVIRONMENT: Final = "venv"
_PACKAGES: Final = "packages.txt"
_LEFT_OUT: Final = shutil.ignore_patterns(".git", ".cog", "__pycache__", ".venv", "venv", "*.pyc")
_TIMEOUT: Final = 1800.0  # seconds for installing, and for describing
_TAIL: Final = 2000  # characters of what a command said that are passed on
_PIPE: Final = 65536  # bytes that a pipe holds
_LOOK: Final = 500  # milliseconds between checks of a process that prints nothing
#: Keys of cog.yaml that are used here, and their types.
_KINDS: Final[dict[str, type]] = {
    "build": dict,
    "build.python_packages": list,
    "build.python_requirements": str,
    "build.system_packages": list,
    "environment": list,
    "concurrency": dict,
    "concurrency.max": int,
}
_KIND_NAMES: Final = {dict: "a mapping", list: "a list", str: "text", int: "a whole number"}


def folder(home: Path, model: ModelConfig) -> Path:
    """The folder of the project's build, which may not exist yet."""
    assert isinstance(model, CogModel), "only a Cog model is a project"
    if isinstance(model.options, BuiltCogOptions):
        return Path(model.options.build)
    return root(home) / f"{fingerprint(_source(home, model))}-{COG}-{_FORMAT}"


def content(build: Path) -> str:
    """The hash that identifies the project of a build."""
    return build.name.partition("-")[0]


def _source(home: Path, model: CogModel) -> Path:
    """The folder of the project's source, which does not exist before its repository is fetched."""
    source = model.source
    return git.project(home, source) if isinstance(source, GitSource) else source.path


def python(build: Path) -> Path:
    """The project's own Python."""
    return build / _ENVIRONMENT / "bin" / "python"


def described(build: Path) -> dict[str, Any]:
    """The description that was stored when the project was built.

    Raises:
        WeightsError: the project is not built, or the build is damaged.
    """
    try:
        found: dict[str, Any] = json.loads((build / DESCRIPTION).read_bytes())
    except OSError as error:
        raise WeightsError(f"{build} is not built; run: appliance pull") from error
    except ValueError as error:
        raise WeightsError(f"{build} is damaged; remove it and run: appliance pull") from error
    return found


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
        if not (number.isdecimal() and is_running(int(number))):
            shutil.rmtree(left, ignore_errors=True)


def _silent(_: str) -> None:
    pass


def build(home: Path, model: CogModel, say: Callable[[str], None] = _silent) -> Path:
    """Build the project unless it is built already, and return the build's folder.

    ``say`` gets a line for each step, and the output of tools.

    Raises:
        WeightsError: the build failed; the text is the tool's output.
    """
    if isinstance(model.source, GitSource):
        say(f"{STEP}fetching {model.source.git}")
        git.fetch(home, model.source)
    project = _source(home, model)
    settings = _settings(model.name, project)
    target = folder(home, model)
    if target.exists():
        say(f"{STEP}it is built already")
        return target
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        shutil.copytree(project, unfinished / PROJECT, ignore=_LEFT_OUT)
        _install(model.name, settings, unfinished, say)
        say(f"{STEP}reading the inputs and the output of the project")
        description = _describe(model.name, settings, unfinished, say)
        _publish(description, unfinished)
        _renamed(unfinished, target)
        unfinished.rename(target)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and target.exists():  # another process was faster
            return target
        raise
    return target


def _settings(name: str, project: Path) -> dict[str, Any]:
    """The content of ``cog.yaml``.

    Raises:
        WeightsError: the file is missing, names no handler, or has a key of the wrong type.
    """
    file = project / "cog.yaml"
    if not file.exists():
        raise WeightsError(f"model {name}: {project} is no Cog project: it has no cog.yaml")
    try:
        found = yaml_source.read(file).data
    except ConfigError as error:
        raise WeightsError(f"model {name}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("run", found.get("predict")), str):
        raise WeightsError(f'model {name}: {file} needs the key run (or predict), such as "run.py:Runner"')
    for key, kind in _KINDS.items():
        place: Any = found
        for part in key.split("."):
            place = (place or {}).get(part)
        if place is not None and not isinstance(place, kind):
            raise WeightsError(f"model {name}: {file}: {key} should be {_KIND_NAMES[kind]}")
    return found


def _install(name: str, settings: dict[str, Any], build: Path, say: Callable[[str], None]) -> None:
    """Make the environment with the project's requirements and Cog's runtime."""
    wanted = settings.get("build") or {}
    version = str(wanted.get("python_version") or f"{sys.version_info.major}.{sys.version_info.minor}")
    uv = [sys.executable, "-m", "uv"]
    environment = build / _ENVIRONMENT
    say(f"{STEP}making an environment with Python {version}")
    venv = [*uv, "venv", "--quiet", "--relocatable", "--python", version, str(environment)]
    _run(name, venv, build, say)
    packages = [f"cog=={COG}", *map(str, wanted.get("python_packages") or ())]
    # Passed in a file, so that every line of a requirements file is allowed, such as "-e ./package".
    (build / _PACKAGES).write_text("".join(f"{package}\n" for package in packages), encoding="utf-8")
    requirements = ["--requirement", str(build / _PACKAGES)]
    if wanted.get("python_requirements"):
        packages.append(f"what {wanted['python_requirements']} names")
        requirements += ["--requirement", str(build / PROJECT / wanted["python_requirements"])]
    say(f"{STEP}installing {' '.join(packages)}")
    install = [*uv, "pip", "install", "--no-progress", "--compile-bytecode", "--python", str(python(build))]
    _run(name, [*install, *requirements], build / PROJECT, say)  # relative paths count from here
    install_modules(environment)
    _tell_missing(name, [str(each) for each in wanted.get("system_packages") or ()], say)


def _site_packages(build: Path) -> Path:
    (found,) = (build / _ENVIRONMENT / "lib").glob("python*/site-packages")
    return found


def _renamed(build: Path, target: Path) -> None:
    """Replace the path of the unfinished build in editable packages by the path of the finished build."""
    packages = _site_packages(build)
    for pattern in ("*.pth", "*editable*.py", "*.dist-info/direct_url.json"):
        for file in packages.glob(pattern):
            content = file.read_bytes()
            if os.fsencode(build) in content:
                file.write_bytes(content.replace(os.fsencode(build), os.fsencode(target)))


def _tell_missing(name: str, packages: list[str], say: Callable[[str], None]) -> None:
    """Say which of the system packages that the project names are not installed; it may do without."""
    asked = shutil.which("dpkg-query")
    for package in packages if asked is not None else ():
        known = subprocess.run([str(asked), "--status", package], capture_output=True, check=False)
        if known.returncode != 0:
            say(f"the system package {package}, which it wants, is not installed")
            _log.warning("model %s wants the system package %s, which is not installed", name, package)


def _describe(name: str, settings: dict[str, Any], build: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Find the inputs and the output of the project. This runs its code."""
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
    """The description of a handler by ``describe_cog.py``.

    The description comes in a file, because everything that the project prints goes to the build's log.
    """
    script = Path(__file__).with_name("describe_cog.py")
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "description.json")
        _run(name, [str(python(build)), str(script), handler, str(answer)], build / PROJECT, say)
        try:
            found: dict[str, Any] = json.loads(answer.read_bytes())
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"model {name}: its Cog project cannot be built: "
                f"the program ended while {handler} was imported, before its inputs were known"
            ) from error
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


def _run(name: str, command: list[str], cwd: Path, say: Callable[[str], None]) -> None:
    """Run a command; ``say`` gets each line of its output. Child processes that it leaves running are killed.

    Raises:
        WeightsError: the command failed (with the end of its output), or took too long.
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
    said: deque[str] = deque(maxlen=100)
    deadline = time.monotonic() + _TIMEOUT
    with process:
        try:
            for line in _lines(process, deadline):
                said.append(line)
                say(line)
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            raise WeightsError(f"model {name}: {command[0]} did not end within {_TIMEOUT:g} s") from error
        finally:  # also at Ctrl-C
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        reason = "\n".join(said).strip()[-_TAIL:] or f"{command[0]} ended with code {code}"
        raise WeightsError(f"model {name}: its Cog project cannot be built: {reason}")


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """Yield the lines that a process prints until it ends; long lines are split.

    Child processes may hold the pipe open for ever, so the end of the pipe is not waited for.

    Raises:
        TimeoutError: ``deadline`` (of ``time.monotonic``) has passed.
    """
    assert process.stdout is not None, "it was started with a pipe"
    os.set_blocking(process.stdout.fileno(), False)
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    rest, ended, chunk = b"", False, None
    while chunk != b"" and not ended:
        ended = process.poll() is not None
        chunk = os.read(process.stdout.fileno(), _PIPE) if poll.poll(0 if ended else _LOOK) else None
        *lines, rest = (rest + (chunk or b"")).split(b"\n")
        if len(rest) > _PIPE:
            lines, rest = [*lines, rest], b""
        yield from (line.decode(errors="replace").rstrip("\r") for line in lines)
        if time.monotonic() > deadline:
            raise TimeoutError
    if rest:
        yield rest.decode(errors="replace")
