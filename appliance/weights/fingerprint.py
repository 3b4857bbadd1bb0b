"""Fingerprints of local folders of weights, without reading gigabytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Files up to this size are read whole; of larger ones this much at each end, and their size.
_WHOLE: Final = 4 * 1024 * 1024  # bytes
_END: Final = 1024 * 1024
MISSING: Final = "missing"


def fingerprint(path: Path) -> str:
    """32 hex digits for the content of a file or folder, or ``missing``; the same wherever it lies.

    Covers the relative names, the sizes, all of the small files and both ends of the large ones. A change in
    the middle of a large file that keeps its size is not seen. Hidden files and folders do not count.
    """
    if not path.exists():
        return MISSING
    digest = hashlib.sha256()
    for name, file in sorted(_files(path)):
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0{_content(file, size)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield "", path
        return
    for file in path.rglob("*"):
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            yield inside.as_posix(), file


def _content(file: Path, size: int) -> str:
    with file.open("rb") as opened:
        if size <= _WHOLE:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        digest = hashlib.sha256(opened.read(_END))
        opened.seek(-_END, 2)
        digest.update(opened.read(_END))
        return digest.hexdigest()
