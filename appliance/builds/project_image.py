"""Builds Cog projects as images with buildah, for projects that need the system packages of an image.

    <home>/images/<digest>/<name>      the image, an OCI layout; `weights/image` has the unpacked image
    <home>/images/<digest>/build.json  why the project was built as an image
    <home>/images/.storage             base images, kept by buildah

The steps are those of `cog build`: system packages, `pre_install`, Python packages, `run`, and the project. A
folder exists only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from appliance.builds import cog_environment, cog_yaml, git, interpreters, system_packages
from appliance.builds.build_process import BuildProcess
from appliance.builds.cog_yaml import COG, CogYaml, is_coglet
from appliance.builds.fingerprint import fingerprint
from appliance.builds.project_files import left_out
from appliance.config import CogModel, FolderSource, GitSource, ImageSource
from appliance.domain.errors import WeightsError
from appliance.machine.processes import is_running

_log = logging.getLogger(__name__)

#: Version of the steps of a build; part of the digest.
_FORMAT: Final = 1
_TAG: Final = "latest"
_COPY: Final = ".project"  # folder with a copy of the project during the build
_PROGRAMS: Final = ("buildah", "skopeo", "umoci", "bwrap")
_CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_INNER_CERTIFICATES: Final = "/run/appliance-certificates.pem"
#: Variables that the commands of a build get, but not the image.
_VARIABLES: Final = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")
_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def root(home: Path) -> Path:
    return home / "images"


def source(home: Path, model: CogModel) -> ImageSource | None:
    """Return the image of a project that is built as an image, which may not exist yet; None for others.

    None also for a project that is not fetched yet, or whose ``cog.yaml`` cannot be read.
    """
    if isinstance(model.source, ImageSource) or reason(home, model) is None:
        return None
    project = _project(home, model.source)
    return ImageSource(image=f"oci:{_folder(home, model, project) / _name(project)}:{_TAG}")


def reason(home: Path, model: CogModel) -> str | None:
    """Return why the project is built as an image, as the end of a sentence; None as for ``source``."""
    if isinstance(model.source, ImageSource) or model.build == "environment":
        return None
    project = _project(home, model.source)
    if not project.exists():
        return None
    if model.build == "image":
        return "models.yaml says so"
    if not all(map(shutil.which, _PROGRAMS)):
        return None
    try:
        return _why_no_environment(cog_yaml.read(model.name, project))
    except WeightsError:  # the build reports it
        return None


def _why_no_environment(settings: CogYaml) -> str | None:
    """Return why no environment can be built for the project on this machine; None if one can."""
    command = cog_environment.system_command(settings)
    if command is not None:
        return f"{command.key} of its cog.yaml changes the system"
    may_download = os.environ.get("UV_PYTHON_DOWNLOADS") not in {"never", "false"}
    if not may_download and not interpreters.is_present(settings.minor):
        no_download = "UV_PYTHON_DOWNLOADS does not let uv download it"
        return f"this machine has no Python {settings.minor}, and {no_download}"
    return None


def unfinished(home: Path) -> list[Path]:
    """Return the folders of unfinished images whose process has ended."""
    owners = [(each, each.name.rpartition(".")[2]) for each in root(home).glob(".*.*")]
    return [each for each, pid in owners if pid.isdecimal() and not is_running(int(pid))]


def build(home: Path, model: CogModel, say: Callable[[str], None]) -> ImageSource | None:
    """Build the image of a project unless it exists; return None if the project is not built as an image.

    ``say`` gets a line for each step, and every line that a tool prints.

    Raises:
        WeightsError: the build failed; the message has the output of the tool.
    """
    assert not isinstance(model.source, ImageSource), "images are not built"
    project = _project(home, model.source)
    found = source(home, model)
    if found is None:
        return None
    target = _folder(home, model, project)
    if target.exists():
        return found
    settings = cog_yaml.read(model.name, project)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        process = BuildProcess(model.name, partial, say, {}, "image")
        why = reason(home, model)
        _log.info("model %s is built as an image with buildah, because %s", model.name, why)
        process.step(f"building an image with buildah, because {why}")
        shutil.copytree(project, partial / _COPY, ignore=left_out(project))
        _Image(home, process, settings, _base(model, settings)).build(_name(project))
        for name in (_COPY, "description", "run"):
            shutil.rmtree(partial / name)
        (partial / "build.json").write_text(json.dumps({"reason": why, "notes": process.notes}))
        partial.rename(target)
    except OSError as error:
        if target.exists():  # another process was faster
            return found
        raise WeightsError(
            f"model {model.name}: its image cannot be stored: {error.filename or partial}: {error.strerror}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found


def _project(home: Path, source: FolderSource | GitSource) -> Path:
    return git.project(home, source) if isinstance(source, GitSource) else source.path


def _folder(home: Path, model: CogModel, project: Path) -> Path:
    facts = [fingerprint(project), model.base, COG, str(_FORMAT)]
    return root(home) / hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _name(project: Path) -> str:
    """Return the name of the folder of the image; the folder of the unpacked image has it too."""
    return "".join(each if each.isalnum() else "-" for each in project.name.lower()).strip("-") or "project"


def _base(model: CogModel, settings: CogYaml) -> str:
    return model.base.replace("{python}", settings.minor)


class _Image:
    """A container of buildah, in which the steps of a build run."""

    def __init__(self, home: Path, process: BuildProcess, settings: CogYaml, base: str) -> None:
        self._process = process
        self._settings = settings
        self._base = base
        storage = root(home) / ".storage"
        self._buildah = ["buildah", "--root", str(storage), "--runroot", str(process.folder / "run")]
        # A build that was killed leaves its container, so the name is a new one each time.
        self._name = f"appliance-{process.folder.name.strip('.')}-{secrets.token_hex(4)}"

    def build(self, name: str) -> None:
        """Build the image, and store it in the folder of the build as ``name``.

        Raises:
            WeightsError: a step failed.
        """
        folder, settings = self._process.folder, self._settings
        for program in _PROGRAMS:
            if shutil.which(program) is None:
                package = "bubblewrap" if program == "bwrap" else program
                raise self._process.error(f"{program} is not installed: install the Debian package {package}")
        self._process.step(f"beginning with the image {self._base}")
        self._call(["from", "--quiet", "--name", self._name, self._base], f"the base image {self._base}")
        try:
            self._install()
            self._process.step("adding the project")
            self._call(["copy", "--quiet", self._name, str(folder / _COPY), "/src"], "adding the project")
            # Cog's server reads the handler from a variable since 0.17.
            variables = {"COG_PREDICT_TYPE_STUB": settings.handler, **settings.environment}
            options = [f"--env={name}={value}" for name, value in variables.items()]
            self._call(["config", "--workingdir", "/src", *options, self._name], "environment")
            self._describe()
            self._process.step("storing the image")
            place = f"oci:{folder / name}:{_TAG}"
            self._call(["commit", "--quiet", "--format", "oci", self._name, place], "storing the image")
        finally:
            self._call(["rm", self._name], "removing the container")

    def _install(self) -> None:
        """Install packages and run the commands of ``cog.yaml``, without the project, as `cog build` does."""
        folder, settings = self._process.folder, self._settings
        if settings.system_packages:
            names = " ".join(system_packages.checked(settings.system_packages, self._process))
            self._process.step(f"installing system packages: {names}")
            apt = f"apt-get update -qq && apt-get install -qqy --no-install-recommends {names}"
            clean = "rm -rf /var/lib/apt/lists/*"
            self._run(
                f"DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; {apt} && {clean}",
                "build.system_packages",
            )
        for command in settings.pre_install:
            self._process.step(f"running {command.key}: {command.text.strip()}")
            self._run(command.text, command.key)
        lines = [f"cog=={settings.cog}", *settings.requirements]
        if settings.requirements_file:
            file = folder / _COPY / settings.requirements_file
            lines += file.read_text(encoding="utf-8", errors="replace").split("\n")
        requirements = folder / "requirements.txt"
        requirements.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._process.step(f"installing {' '.join(lines)}")
        parts = tuple(map(int, settings.minor.split(".")))
        check = f"import sys; sys.exit(0 if sys.version_info[:2] == {parts} else sys.version)"
        self._run(f'python -c "{check}"', f"the check that {self._base} has Python {settings.minor}")
        pip = "python -m pip install --quiet --no-cache-dir --root-user-action=ignore --requirement"
        inner = "/run/appliance-requirements.txt"
        self._run(f"{pip} {inner}", "pip install", volumes={requirements: inner})
        for command in settings.run:
            self._process.step(f"running {command.key}: {command.text.strip()}")
            self._run(command.text, command.key)

    def _describe(self) -> None:
        """Let the project describe its inputs and output, and set the labels and the command of the image."""
        folder, settings = self._process.folder, self._settings
        self._process.step("reading the inputs and the output of the project")
        output = folder / "description"
        output.mkdir()
        coglet = is_coglet(settings.cog)
        script = Path(__file__).with_name("describe_cog.py" if coglet else "describe_python_server.py")
        arguments = f"{shlex.quote(settings.handler)} " if coglet else ""
        self._run(
            f"cd /src && python /run/appliance-describe.py {arguments}/run/appliance/description.json",
            f"the import of {settings.handler}",
            volumes={script: "/run/appliance-describe.py", output: "/run/appliance"},
        )
        found: dict[str, Any] = json.loads((output / "description.json").read_bytes())
        interface = found["interface"]
        schemas = {"Input": interface["input"], "Output": interface["output"], **interface["components"]}
        document = {
            "openapi": "3.0.2",
            "info": {"title": "Cog", "version": "0.1.0"},
            "paths": {},
            "components": {"schemas": schemas},
        }
        file = output / "openapi_schema.json"  # Cog's server reads it from here
        file.write_text(json.dumps(document))
        self._call(["copy", "--quiet", self._name, str(file), "/src/.cog/openapi_schema.json"], "the schemas")
        concurrency = int(settings.concurrency or found["concurrency"])
        labels = {
            "run.cog.version": settings.cog,
            "run.cog.openapi_schema": json.dumps(document),
            "run.cog.config": json.dumps({"concurrency": {"max": concurrency}}),
        }
        options = [f"--label={name}={value}" for name, value in labels.items()]
        command = ["--entrypoint", "[]", "--cmd", "python -m cog.server.http"]
        self._call(["config", *options, *command, self._name], "the labels")

    def _run(self, text: str, what: str, volumes: dict[Path, str] | None = None) -> None:
        """Run a shell command in the container; ``volumes``: files and folders of this machine -> paths."""
        mounted = dict(volumes or {})
        # Without a value, buildah takes that of its own environment: it may contain a password.
        options = [f"--env={name}" for name in (*_VARIABLES, *_PROXIES) if name in os.environ]
        variables: dict[str, str] = {}
        if _CERTIFICATES.exists():  # of this machine, which may have an authority of its own
            mounted[_CERTIFICATES] = _INNER_CERTIFICATES
            variables |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE", "CURL_CA_BUNDLE"), _INNER_CERTIFICATES)
        options += [f"--env={name}={value}" for name, value in variables.items()]
        options += [f"--volume={path}:{inner}" for path, inner in mounted.items()]
        isolation = ["--isolation", "chroot", "--network", "host"]  # works without a container engine
        command = ["run", *isolation, *options, self._name, "--", "/bin/sh", "-c", text]
        self._call(command, what)

    def _call(self, arguments: list[str], what: str) -> None:
        # Landlock, and the capabilities that go with it, would forbid the mounts of buildah. Its steps run in
        # a user namespace or with fewer capabilities. Pushed projects are never built as images.
        command = [*self._buildah, *arguments]
        self._process.run(command, self._process.folder, what=what, restricted=False)
