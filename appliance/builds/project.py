"""Builds Cog projects.

A build is a folder with a copy of the project, a Python environment, and the schemas of the project's inputs
and output. The folder's name contains a hash of the project, and the folder exists only when the build is
complete. The project itself is not changed.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from appliance.builds import build_process, cog_environment, cog_yaml, git
from appliance.builds.build_process import BuildProcess
from appliance.builds.cog_yaml import COG, CogYaml, is_coglet
from appliance.builds.fingerprint import fingerprint
from appliance.builds.project_files import left_out
from appliance.config import (
    BuiltCogOptions,
    CogModel,
    FolderSource,
    GitSource,
    ImageSource,
    ModelConfig,
)
from appliance.domain.errors import WeightsError
from appliance.machine.processes import is_running
from appliance.runners.cog.runner import PYTHON_SERVER
from appliance.runners.cog.search_paths import SYSTEM

#: Version of the layout of builds; part of the name of a build.
_FORMAT: Final = 5
DESCRIPTION: Final = "build.json"
STEP: Final = build_process.STEP
PROJECT: Final = cog_environment.PROJECT
python = cog_environment.python
TRAINING: Final = "training"


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
    assert not isinstance(source, ImageSource), "images are not built"
    return git.project(home, source) if isinstance(source, GitSource) else source.path


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


def fetch(home: Path, model: CogModel, say: Callable[[str], None] = lambda _line: None) -> None:
    """Fetch the git repository of the project, if it is in one.

    Raises:
        WeightsError: the repository cannot be fetched.
    """
    if isinstance(model.source, GitSource):
        say(f"{STEP}fetching {model.source.git}")
        git.fetch(home, model.source)


def build(home: Path, model: CogModel, say: Callable[[str], None] = lambda _line: None) -> Path:
    """Build the project unless its build exists, and return the folder of the build.

    ``say`` gets a line for each step, and every line that a tool prints.

    Raises:
        WeightsError: the build failed; the message has the output of the tool.
    """
    fetch(home, model, say)
    project = _source(home, model)
    settings = cog_yaml.read(model.name, project)
    target = folder(home, model)
    if target.exists():
        say(f"{STEP}the project is built already")
        return target
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        shutil.copytree(project, unfinished / PROJECT, ignore=left_out(project))
        process = BuildProcess(model.name, unfinished, say, settings.environment)
        for note in settings.notes:
            process.note(note)
        if settings.gpu and not Path("/dev/nvidiactl").exists():
            process.note("build.gpu: this machine has no NVIDIA GPU")
        cog_environment.make(settings, process)
        process.step("reading the inputs and the output of the project")
        description = _describe(settings, process)
        _publish(description, unfinished)
        relocate(unfinished, unfinished, target)
        unfinished.rename(target)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and target.exists():  # another process was faster
            return target
        raise
    return target


def relocate(build: Path, before: Path, after: Path) -> None:
    """Replace the path ``before`` of a build by ``after``, in editable packages and in scripts.

    Files outside the build, to which links may lead, are not changed.
    """
    inside = build.resolve()
    packages = f"{cog_environment.ENVIRONMENT}/lib/python*/site-packages"
    patterns = [f"{packages}/{each}" for each in ("*.pth", "*editable*.py", "*.dist-info/direct_url.json")]
    patterns += [f"{cog_environment.ENVIRONMENT}/bin/*", f"{SYSTEM}/usr/local/bin/*"]
    for file in itertools.chain.from_iterable(map(build.glob, patterns)):
        if not (file.is_file() and file.resolve().is_relative_to(inside)):
            continue
        is_program = file.parent.name == "bin"
        if is_program and not _is_script(file):
            continue
        content = file.read_bytes()
        if os.fsencode(before) in content:
            file.write_bytes(content.replace(os.fsencode(before), os.fsencode(after)))


def _is_script(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) == b"#!"


def _describe(settings: CogYaml, build: BuildProcess) -> dict[str, Any]:
    """Return the description of the project. This runs the project's code."""
    version = cog_environment.cog_version(build.folder)
    if is_coglet(version):
        description = _coglet_description(settings, build)
    else:
        if settings.handler_key != "predict":
            raise build.error(f"Cog {version} does not know the key run: replace run by predict in cog.yaml")
        script = "describe_python_server.py"
        description = _described_by(script, [], build, what=f"the import of {settings.handler}")
        description["runtime"] = PYTHON_SERVER
    concurrency = int(settings.concurrency or description["concurrency"])
    if concurrency > description["concurrency"] and description.get("runtime") and not _runs_several(version):
        build.note(f"concurrency.max {concurrency}: Cog {version} runs one prediction at a time")
        concurrency = 1
    info = {"x-cog-version": version, **({"x-not-honoured": build.notes} if build.notes else {})}
    description["interface"]["info"] = info
    return {
        **description,
        "handler": settings.handler,
        "concurrency": concurrency,
        "environment": settings.environment,
        "system_packages": list(settings.system_packages),
        "cog": version,
        "notes": build.notes,
    }


def _runs_several(version: str) -> bool:
    """Return whether this version of Cog can run several predictions at the same time."""
    return tuple(map(int, version.split(".")[:2])) >= (0, 14)


def _coglet_description(settings: CogYaml, build: BuildProcess) -> dict[str, Any]:
    script = "describe_cog.py"
    description = _described_by(script, [settings.handler], build, what=f"the import of {settings.handler}")
    if settings.train is not None:
        training = _described_by(script, [settings.train], build, what=f"the import of {settings.train}")
        description["training"] = {"handler": settings.train, "interface": training["interface"]}
    return description


def _described_by(script: str, arguments: list[str], build: BuildProcess, what: str) -> dict[str, Any]:
    """Run a script in the project's environment, and return the description that it writes to a file.

    It does not print the description, because its standard output has the text of the project.
    """
    program = str(Path(__file__).with_name(script))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "description.json")
        build.run([str(python(build.folder)), program, *arguments, str(file)], build.folder / PROJECT)
        try:
            found: dict[str, Any] = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise build.error(f"the process ended during {what}") from error
    return found


def _publish(description: dict[str, Any], build: Path) -> None:
    """Write the description into the build, and the schemas to the files that Cog's runtime reads.

    The runtime reads schemas of predictions and of trainings from the same path in the project's folder, so
    trainings have a copy of the folder.
    """
    if description.get("runtime") == PYTHON_SERVER:  # which makes the schemas itself
        (build / DESCRIPTION).write_text(json.dumps(description))
        return
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
