"""Moves output files of a model to the folder of the prediction."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import mimetypes
import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

from appliance.domain.errors import PredictionFailed
from appliance.domain.file import OutputFile
from appliance.domain.prediction import Job, Output, new_stream_token

#: Media types that Python 3.11 does not know, or for which it has names that browsers do not know.
_TYPES: Final = {
    ".webp": "image/webp",
    ".wav": "audio/wav",
    ".jsonl": "application/jsonl",
    ".srt": "text/plain",
}
#: Media types of compressed files.
_COMPRESSED: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST: Final = 100  # most characters of the stem of a file name, and of its suffix


def has_files(output: Output) -> bool:
    return any(type(value) is not str and _has_path(value) for value in output.values)  # most are text


def _has_path(value: Any) -> bool:
    match value:
        case Path():
            return True
        case list() | tuple():
            return any(map(_has_path, value))
        case dict():
            return any(map(_has_path, value.values()))
    return False


async def take_over(job: Job, output: Output) -> Output:
    """Move output files to ``job.folder``; return the output with an ``OutputFile`` in place of each path.

    A folder becomes a zip file. A file of at most ``job.inline`` bytes becomes a data URL and is not moved.

    Raises:
        PredictionFailed: a file does not exist or cannot be read.
    """
    values = await asyncio.to_thread(lambda: [_replace_paths(job, value) for value in output.values])
    return Output(values, append=output.append)


def _replace_paths(job: Job, value: Any) -> Any:
    match value:
        case Path():
            try:
                return _take_over(job, value)
            except OSError as error:
                raise PredictionFailed(f"the model's output file {value} cannot be read: {error}") from error
        case list() | tuple():
            return [_replace_paths(job, part) for part in value]
        case dict():
            return {key: _replace_paths(job, part) for key, part in value.items()}
    return value


def _take_over(job: Job, path: Path) -> Any:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem, ending = _safe(path.name)
    if path.is_dir():  # becomes a zip file
        packed = _free_path(folder, stem, f"{ending}.zip")
        path = Path(shutil.make_archive(str(packed.with_suffix("")), "zip", path))
        stem, ending = _safe(path.name)
    kind = _media_type(f"{stem}{ending}")
    if path.stat().st_size <= job.inline:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    target = folder / f"{stem}{ending}"
    if path.resolve() != target.resolve():
        target = _free_path(folder, stem, ending)
        shutil.move(path.resolve(), target)
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with target.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            sha256.update(chunk)
            md5.update(chunk)
        os.fsync(file.fileno())  # before an event refers to the file
    return OutputFile(
        id=new_stream_token(),
        name=target.name,
        content_type=kind,
        size=target.stat().st_size,
        sha256=sha256.hexdigest(),
        md5=md5.hexdigest(),
        path=str(target),
    )


def _safe(name: str) -> tuple[str, str]:
    """Return the stem and the suffix of a file name, without special characters of paths and URLs."""
    stem, ending = Path(name).stem, Path(name).suffix
    if stem.endswith(".tar"):
        stem, ending = stem.removesuffix(".tar"), f".tar{ending}"
    stem, ending = (_UNSAFE.sub("-", part) for part in (stem, ending))
    return stem.strip("-").lstrip(".")[:_LONGEST] or "output", ending[:_LONGEST]


def _media_type(name: str) -> str:
    known, compressed = mimetypes.guess_type(name)
    if compressed is not None:
        known = _COMPRESSED.get(compressed)
    return _TYPES.get(Path(name).suffix.lower()) or known or "application/octet-stream"


def _free_path(folder: Path, stem: str, ending: str) -> Path:
    """Return a path in ``folder`` that does not exist. A number is added to the name if needed."""
    number, free = 1, folder / f"{stem}{ending}"
    while free.exists():
        number += 1
        free = folder / f"{stem}-{number}{ending}"
    return free
