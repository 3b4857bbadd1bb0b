"""Fingerprints of local files and folders. Large files are not read completely."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Files up to this size are read completely, and larger ones only at both ends.
_SMALL: Final = 4 * 1024 * 1024  # bytes
_END: Final = 1024 * 1024  # bytes at each end
MISSING: Final = "missing"


def fingerprint(path: Path) -> str:
    """Return 32 hex digits that identify the content of a file or folder; ``missing`` if it does not exist.

    The digits do not depend on the path. They cover the relative names and sizes of files, the content of
    small files, and both ends of large files: a change in the middle of a large file that keeps its size is
    not noticed. Hidden files and folders are left out.
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
        relative = file.relative_to(path)
        if file.is_file() and not any(name.startswith(".") for name in relative.parts):
            yield relative.as_posix(), file


def _content(file: Path, size: int) -> str:
    with file.open("rb") as opened:
        if size <= _SMALL:
            return hashlib.file_digest(opened, "sha256").hexdigest()
        digest = hashlib.sha256(opened.read(_END))
        opened.seek(-_END, 2)
        digest.update(opened.read(_END))
        return digest.hexdigest()
