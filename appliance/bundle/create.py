"""Makes a bundle: looks up what it will contain, downloads what is missing, and writes the archive."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

import msgspec
from rich.progress import Progress

from appliance import __version__, weights
from appliance.adding.known_models import VARIABLE as CATALOGUE_VARIABLE
from appliance.bundle import environment_wheels, licences, models, toolchain, wheels
from appliance.bundle.models import Member
from appliance.bundle.wheels import BundledWheel
from appliance.config import Config, FolderSource, ModelConfig
from appliance.domain.errors import ApplianceError, WeightsError
from appliance.domain.units import readable_bytes
from appliance.driver.backup import add_file
from appliance.driver.backup_format import CHECKSUMS, CHUNK

Variant = Literal["cpu", "gpu"]

_CONF: Final = "bundle.conf"
#: Scripts of the checkout that are copied into a bundle, and their names there.
_SCRIPTS: Final = {"bundle/install": "install", "bundle/serve": "serve", "preflight": "scripts/preflight"}
#: Bytes, about, of the Python, of uv, and of the wheel of the appliance.
_TOOLS: Final = 200 * 1024**2


class BundlePlan(msgspec.Struct):
    """What a bundle will contain, before anything is downloaded."""

    variant: Variant
    python: bool  # whether the bundle contains a Python
    models: list[ModelConfig]
    missing: list[str]  # of ``models.all_weights``: names of those to be downloaded; their size is unknown
    wheels: list[BundledWheel]
    weights: int  # bytes of the weights that are on the disk
    #: Folder in the bundle -> wheels of the environment; set by create().
    environments: dict[str, list[BundledWheel]] = {}

    @property
    def all_wheels(self) -> list[BundledWheel]:
        """The wheels of the appliance and of environments of models, each once."""
        return list(
            {
                wheel.name: wheel for listed in (self.wheels, *self.environments.values()) for wheel in listed
            }.values()
        )

    @property
    def packages(self) -> int:
        """Size of all wheels in bytes."""
        return sum(wheel.size for wheel in self.all_wheels)

    @property
    def size(self) -> int:
        """Approximate size of the bundle in bytes, without missing weights."""
        return self.packages + self.weights + _TOOLS


class Created(msgspec.Struct):
    """Result of ``create``."""

    size: int  # bytes
    sha256: str  # of the whole file
    files: int
    notes: list[str]  # for the user


def plan(
    root: Path, config: Config, home: Path, names: Sequence[str], variant: Variant, *, python: bool
) -> BundlePlan:
    """Look up the content of a bundle. ``root`` is the checkout, ``names`` are models (empty: all).

    Raises:
        ApplianceError: a model is unknown or cannot be bundled, or the package index cannot be reached.
    """
    toolchain.check_checkout(root)
    chosen = models.choose(config, names)
    environment_wheels.check_variant(chosen, variant)
    loaded = models.all_weights(chosen)
    missing = [model.name for model in loaded if not _has_weights(home, model)]
    present = [model for model in loaded if model.name not in missing]
    with wheels.Index() as index:
        found = wheels.resolve(_lock(root, variant), toolchain.uv_program(), index)
    size = sum(member.path.stat().st_size for member in models.weight_files(home, present))
    return BundlePlan(variant, python, chosen, missing, found, size)


def create(
    root: Path,
    config_path: Path,
    config: Config,
    home: Path,
    target: Path,
    planned: BundlePlan,
    progress: Progress,
) -> Created:
    """Write the bundle to the new file ``target``, which appears only when it is complete.

    Downloads go to the folder ``.<name of target>.downloads`` beside ``target``. It stays if an error or
    Ctrl-C interrupts the command, so that the next attempt resumes, and is removed at the end.

    Raises:
        ApplianceError: ``target`` exists, the disk is too small, a download fails, or a file is damaged.
    """
    if target.exists():
        raise ApplianceError(f"{target} exists already: choose another name, or remove it")
    if not target.parent.is_dir():
        raise ApplianceError(f"the folder {target.parent} does not exist: create it, or choose another name")
    texts = models.config_files(config_path, config, planned.models)  # its errors come before the downloads
    work = target.with_name(f".{target.name}.downloads")
    try:
        work.mkdir(exist_ok=True)
        _check_texts(work, texts.texts, config)
        _pull(home, planned, progress)
        members = models.weight_files(home, models.all_weights(planned.models))
        with wheels.Index() as index:
            planned.environments = environment_wheels.resolve(home, planned.models, index)
            _check_space(target.parent, planned, members, work)
            paths = wheels.download(planned.all_wheels, work / "wheels", index, progress)
        built = toolchain.build_wheel(root, work / "appliance")
        packages = [*paths.values(), built]
        if planned.python:
            members.append(Member("python.tar", toolchain.pack_python(work)))
        members += [Member(f"wheels/{wheel.name}", paths[wheel.name]) for wheel in planned.wheels]
        members.append(Member(f"wheels/{built.name}", built))
        for folder, listed in planned.environments.items():
            members += [Member(f"{folder}/{wheel.name}", paths[wheel.name]) for wheel in listed]
        members.append(Member("uv", Path(toolchain.uv_program())))
        members.append(Member("requirements.lock", _lock(root, planned.variant)))
        members += [Member(name, root / "scripts" / script) for script, name in _SCRIPTS.items()]
        own = os.environ.get(CATALOGUE_VARIABLE) or config.catalogue.source
        if own is not None and not own.startswith("https://"):
            members.append(Member("catalogue.yaml", Path(own).expanduser()))
        contents = {f"{models.CONFIG}/{name}": text for name, text in texts.texts.items()}
        for folder, listed in planned.environments.items():
            lines = (f"{wheel.package}=={wheel.version}\n" for wheel in listed)
            contents[f"{folder}/packages.txt"] = "".join(lines)
        described = _licences(home, config, planned, members, packages)
        contents["licences.json"] = json.dumps(described, indent=2) + "\n"
        contents[_CONF] = _conf(planned, packages, members)
        created = _write(target, planned, contents, sorted(members), progress)
    except OSError as error:
        place = error.filename or target
        raise ApplianceError(f"the bundle {target} cannot be written: {place}: {error.strerror}") from error
    shutil.rmtree(work, ignore_errors=True)
    return msgspec.structs.replace(created, notes=[*texts.notes, *licences.unknown(described["models"])])


def _lock(root: Path, variant: Variant) -> Path:
    return root / "requirements" / f"{variant}.lock"


def _has_weights(home: Path, model: ModelConfig) -> bool:
    folder = models.weights_folder(home, model)
    return folder is None or folder.exists()


def _check_texts(work: Path, texts: dict[str, str], config: Config) -> None:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for name, text in texts.items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        models.check_written(Path(folder), config)


def _pull(home: Path, planned: BundlePlan, progress: Progress) -> None:
    for model in planned.models:
        for each in models.all_weights([model]):
            if each.name not in planned.missing or isinstance(each.source, FolderSource):
                continue
            try:
                weights.pull(home, each, progress)
            except WeightsError as error:
                raise ApplianceError(
                    f"the weights of model {each.name} are not on this machine, and cannot be downloaded: "
                    f"{error.detail}: run `appliance pull {model.name}` when the network can be reached, or "
                    f"leave the model {model.name} out with --models"
                ) from error


def _check_space(folder: Path, planned: BundlePlan, members: Sequence[Member], work: Path) -> None:
    """Check that the bundle, and the downloads for it, fit on the disk.

    Raises:
        ApplianceError: they do not.
    """
    size = planned.packages + _TOOLS + sum(member.path.stat().st_size for member in members)
    download = wheels.missing(planned.all_wheels, work / "wheels") + _TOOLS
    free = shutil.disk_usage(folder).free
    if size + download > free:
        raise ApplianceError(
            f"{folder} has {readable_bytes(free)} of free space, and the bundle needs "
            f"{readable_bytes(size + download)} ({readable_bytes(size)} for the file, "
            f"{readable_bytes(download)} for downloads): free space, or write it to another disk"
        )


def _licences(
    home: Path, config: Config, planned: BundlePlan, members: Sequence[Member], packages: Sequence[Path]
) -> Any:
    """Return the content of ``licences.json``."""
    loaded = models.all_weights(planned.models)
    tops = {model.name: top for model in loaded if (top := models.weights_name(home, model)) is not None}
    return {
        "models": licences.of_models(config, loaded, members, tops),
        "packages": licences.of_packages(packages),
    }


def _conf(planned: BundlePlan, packages: Sequence[Path], members: Sequence[Member]) -> str:
    """Return the text of ``bundle.conf``, which the script ``install`` reads: lines ``key=value``."""
    unpacked = sum(entry.file_size for path in packages for entry in zipfile.ZipFile(path).infolist())
    python = sum(member.path.stat().st_size for member in members if member.name == "python.tar")
    values: dict[str, Any] = {
        "appliance": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "variant": planned.variant,
        "machine": platform.machine(),
        "python": toolchain.VERSION,
        "glibc": f"2.{max((wheel.glibc for wheel in planned.all_wheels), default=wheels.OLDEST_GLIBC)}",
        # compiled Python takes about as much space as its source
        "packages_gib": (unpacked * 5 // 4 + python) // 1024**3 + 1,
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


class _Output:
    """A file that is written, with the SHA-256 of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)


def _write(
    target: Path, planned: BundlePlan, contents: dict[str, str], members: Sequence[Member], progress: Progress
) -> Created:
    """Write the archive to a hidden file beside ``target``, and link it there when it is complete."""
    # with the time, so that a newer bundle is not unpacked over an older one
    top = f"appliance-{__version__}-{planned.variant}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    task = progress.add_task("writing", total=sum(member.path.stat().st_size for member in members))
    sums: list[bytes] = []
    try:
        with part.open("xb") as file:
            output = _Output(file)
            stream = cast("IO[bytes]", output)  # tarfile only writes
            with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                archive.copybufsize = CHUNK  # type: ignore[attr-defined]  # missing in the stubs
                for name, text in contents.items():
                    sums.append(_add(archive, top, name, text.encode()))
                for member in members:
                    with member.path.open("rb") as content:
                        size = os.fstat(content.fileno()).st_size
                        executable = member.name == "uv" or member.name in _SCRIPTS.values()
                        line = add_file(
                            archive, f"{top}/{member.name}", content, size, 0o755 if executable else 0o644
                        )
                        sums.append(line.replace(f"{top}/".encode(), b"", 1))
                    progress.advance(task, size)
                _add(archive, top, CHECKSUMS, b"".join(sums))
            file.flush()
            os.fsync(file.fileno())
        os.link(part, target)  # unlike a rename, this never replaces a file
    finally:
        part.unlink(missing_ok=True)
    return Created(output.size, output.sha256.hexdigest(), len(sums), [])


def _add(archive: tarfile.TarFile, top: str, name: str, content: bytes) -> bytes:
    line = add_file(archive, f"{top}/{name}", io.BytesIO(content), len(content), 0o644)
    return line.replace(f"{top}/".encode(), b"", 1)
