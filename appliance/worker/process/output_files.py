"""Files in the output of a model: taken over from wherever the model has put them."""

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

#: What Python 3.11 does not know, or knows under a name that browsers do not.
_TYPES: Final = {
    ".webp": "image/webp",
    ".wav": "audio/wav",
    ".jsonl": "application/jsonl",
    ".srt": "text/plain",
}
#: Media types of compressed files.
_COMPRESSED: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST: Final = 100  # characters of a file name without its suffix


def has_files(output: Output) -> bool:
    """Whether any value may hold one; nearly all are text, and quickly seen not to."""
    return any(type(value) is not str and _any(value) for value in output.values)


def _any(value: Any) -> bool:
    match value:
        case Path():
            return True
        case list() | tuple():
            return any(_any(part) for part in value)
        case dict():
            return any(_any(part) for part in value.values())
    return False


async def taken(job: Job, output: Output) -> Output:
    """``output`` with every path replaced by the file there, which lies in ``job.folder`` from now on.

    Raises:
        PredictionFailed: there is no such file.
    """
    values = await asyncio.to_thread(lambda: [_taken(job, value) for value in output.values])
    return Output(values, append=output.append)


def _taken(job: Job, value: Any) -> Any:
    match value:
        case Path():
            try:
                return _take(job, value)
            except OSError as error:
                raise PredictionFailed(f"the model's output file {value} cannot be read: {error}") from error
        case list() | tuple():
            return [_taken(job, part) for part in value]
        case dict():
            return {key: _taken(job, part) for key, part in value.items()}
    return value


def _take(job: Job, path: Path) -> Any:
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem, ending = _safe(path.name)
    if path.is_dir():  # its contents, in one file
        packed = _free(folder, stem, f"{ending}.zip")
        path = Path(shutil.make_archive(str(packed.with_suffix("")), "zip", path))
        stem, ending = _safe(path.name)
    kind = _media_type(f"{stem}{ending}")
    if path.stat().st_size <= job.inline:
        return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    place = folder / f"{stem}{ending}"
    if path.resolve() != place.resolve():
        place = _free(folder, stem, ending)
        shutil.move(path.resolve(), place)
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with place.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            sha256.update(chunk)
            md5.update(chunk)
        os.fsync(file.fileno())  # it is spoken of only after it is safe
    return OutputFile(
        id=new_stream_token(),
        name=place.name,
        content_type=kind,
        size=place.stat().st_size,
        sha256=sha256.hexdigest(),
        md5=md5.hexdigest(),
        path=str(place),
    )


def _safe(name: str) -> tuple[str, str]:
    """The stem and the suffix of a file name, without characters that are special in paths or URLs."""
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


def _free(folder: Path, stem: str, ending: str) -> Path:
    """A path with this name that no other output has; a number is added if the name is taken."""
    number, free = 1, folder / f"{stem}{ending}"
    while free.exists():
        number += 1
        free = folder / f"{stem}-{number}{ending}"
    return free
