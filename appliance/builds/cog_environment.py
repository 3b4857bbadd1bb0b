"""Makes the Python environment of a Cog project."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from appliance.builds import interpreters, system_packages
from appliance.builds.build_process import BuildProcess
from appliance.builds.cog_yaml import CogYaml, ShellCommand, is_coglet
from appliance.domain.errors import WeightsError
from appliance.runners.cog.installed_modules import install_modules
from appliance.runners.cog.search_paths import SYSTEM

ENVIRONMENT: Final = "venv"
PROJECT: Final = "project"
_PACKAGES: Final = "packages.txt"
_OVERRIDES: Final = "overrides.txt"
_CONSTRAINTS: Final = "constraints.txt"
#: Programs that change the whole system.
_SYSTEM_PROGRAMS: Final = re.compile(
    r"(?:^|[;&|(`]|\bthen|\bdo)\s*((?:sudo|apt|apt-get|dpkg|add-apt-repository|ldconfig|update-alternatives)\b)",
    re.MULTILINE,
)
#: Folders of Cog's images, and the folder of the build that takes their place in commands.
_PROGRAMS: Final = "usr/local/bin"
_SITE_PACKAGES: Final = re.compile(
    r"(?:/usr/local|/root/\.pyenv/versions/[\d.]+)/lib/python3\.\d+/(?:site|dist)-packages\b"
)
_PYTHON_PROGRAMS: Final = re.compile(r"/usr/local/bin/(?=(?:python|pip)[\d.]*(?![\w-]))")
_SOURCE: Final = re.compile(r"(?<![\w./-])/src(?=[/\s'\";]|$)")


def python(build: Path) -> Path:
    return build / ENVIRONMENT / "bin" / "python"


def site_packages(environment: Path) -> Path:
    return next((environment / "lib").glob("python*/site-packages"))


def make(settings: CogYaml, build: BuildProcess) -> None:
    """Make an environment with the project's system packages, Python packages and Cog, and run its commands.

    Raises:
        WeightsError: the environment cannot be made; the message says which step failed.
    """
    system_packages.install(settings.system_packages, build)
    uv = [sys.executable, "-m", "uv"]
    environment = build.folder / ENVIRONMENT
    interpreter = _interpreter(settings, build)
    build.step(f"making an environment with Python {settings.minor} ({interpreter})")
    # With pip and setuptools, which Cog's images have and older packages and commands need.
    venv = [*uv, "venv", "--quiet", "--seed", "--relocatable", "--python", interpreter, str(environment)]
    build.run(venv, build.folder)
    for command in settings.pre_install:
        _run(command, build)
    packages = [f"cog=={settings.cog}", *settings.requirements]
    # In a requirements file, because lines such as "-e ./package" are allowed there.
    file = build.folder / _PACKAGES
    file.write_text("".join(f"{package}\n" for package in packages), encoding="utf-8")
    requirements = ["--requirement", str(file)]
    overrides = build.folder / _OVERRIDES  # a requirements file may pin another version
    overrides.write_text(f"cog=={settings.cog}\n", encoding="utf-8")
    requirements += ["--override", str(overrides)]
    if settings.requirements_file:
        packages.append(f"the packages in {settings.requirements_file}")
        requirements += ["--requirement", str(build.folder / PROJECT / settings.requirements_file)]
    build.step(f"installing {' '.join(packages)}")
    install = [*uv, "pip", "install", "--no-progress", "--compile-bytecode"]
    # As pip does, for which the projects were written: an index does not hide the versions of another one.
    install += ["--index-strategy", "unsafe-best-match", "--python", str(python(build.folder))]
    try:
        build.run([*install, *requirements], build.folder / PROJECT)  # relative paths start there
    except WeightsError as error:
        if "pkg_resources" not in error.detail:
            raise
        # Older source packages import it without a declaration; setuptools 82 has removed it.
        build.step("installing with setuptools before 82: a package needs pkg_resources to be built")
        constraints = build.folder / _CONSTRAINTS
        constraints.write_text("setuptools<82\n", encoding="utf-8")
        older = ["--build-constraints", str(constraints)]
        build.run([*install, *older, *requirements], build.folder / PROJECT)
    for command in settings.run:
        _run(command, build)
    if is_coglet(cog_version(build.folder)):
        install_modules(environment)


def cog_version(build: Path) -> str:
    """Return the version of Cog in the environment, which the project's commands may have changed."""
    found = sorted(site_packages(build / ENVIRONMENT).glob("cog-*.dist-info"))
    return found[-1].name.removeprefix("cog-").removesuffix(".dist-info") if found else ""


def system_command(settings: CogYaml) -> ShellCommand | None:
    """Return the first command of ``cog.yaml`` that would change the whole system."""
    commands = (*settings.pre_install, *settings.run)
    return next((each for each in commands if _SYSTEM_PROGRAMS.search(each.text)), None)


def _run(command: ShellCommand, build: BuildProcess) -> None:
    """Run a command of ``cog.yaml`` with the shell, in the copy of the project.

    Raises:
        WeightsError: it failed, took too long, or would change the system.
    """
    if (program := _SYSTEM_PROGRAMS.search(command.text)) is not None:
        raise build.error(
            f"{command.key} calls {program[1]}, which changes the whole system: list Debian packages in "
            "build.system_packages instead, or set `build: image` for the model in models.yaml"
        )
    programs = build.folder / SYSTEM / _PROGRAMS
    programs.mkdir(parents=True, exist_ok=True)
    text = _SITE_PACKAGES.sub(str(site_packages(build.folder / ENVIRONMENT)), command.text)
    text = _PYTHON_PROGRAMS.sub(f"{build.folder / ENVIRONMENT / 'bin'}/", text)
    text = _SOURCE.sub(str(build.folder / PROJECT), text.replace(f"/{_PROGRAMS}", str(programs)))
    build.step(f"running {command.key}: {command.text.strip()}")
    if text != command.text:
        build.say("paths of Cog's images are replaced by paths of the build")
    try:
        build.run(
            ["/bin/sh", "-c", text], build.folder / PROJECT, what=f"{command.key} ({command.text.strip()})"
        )
    except WeightsError as error:
        if "Permission denied" in error.detail or "Read-only file system" in error.detail:
            raise WeightsError(
                f"{error.detail}\nThe command may write only below /usr/local/bin and /src: change it, or "
                "set `build: image` for the model in models.yaml"
            ) from error
        raise


def _interpreter(settings: CogYaml, build: BuildProcess) -> str:
    """Return the path of a Python of the version that the project needs.

    Raises:
        WeightsError: there is none, and it cannot be downloaded.
    """
    found = interpreters.find(settings.python, build, "build.python_version")
    if settings.python not in {settings.minor, found.version}:
        build.note(f"build.python_version {settings.python}: Python {found.version} is used")
    return found.path
