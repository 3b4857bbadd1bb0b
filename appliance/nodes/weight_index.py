"""The files of models' weights on the head, with the SHA-256 of each file."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

from appliance.domain.errors import NodeError
from appliance.nodes.messages import WeightFile, WeightTree

_log = logging.getLogger(__name__)

_CHUNK: Final = 4 * 1024 * 1024  # bytes


class _Known(msgspec.Struct, frozen=True):
    """The digest of a file, valid as long as the other values are those of the file."""

    size: int
    changed: int  # nanoseconds
    inode: int
    sha256: str


class WeightIndex:
    """Computes digests of weights once, and remembers them in a file.

    Members of the cluster can only read files that were listed with ``trees``.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, _Known] = {}
        self._offered: dict[str, Path] = {}  # by SHA-256
        self._saving = threading.Lock()
        self._locks: dict[Path, asyncio.Lock] = {}  # each path is read once, and different paths together
        try:
            self._known = msgspec.json.decode(file.read_bytes(), type=dict[str, _Known])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("the digests of weights in %s are computed again: %s", file, error)

    async def trees(self, paths: Sequence[Path]) -> list[WeightTree]:
        """Return the files below each of ``paths``, and offer them to members of the cluster.

        Links are followed. Reads files whose digest is not known, which takes about a second per GiB.

        Raises:
            NodeError: a path does not exist or cannot be read.
        """
        found = []
        for path in paths:
            async with self._locks.setdefault(path, asyncio.Lock()):
                found.append(await asyncio.to_thread(self._tree, path))
        return found

    async def are_known(self, paths: Sequence[Path]) -> bool:
        """Return whether ``trees`` would have to read no file, because all digests are known."""
        return all([await asyncio.to_thread(self._is_known, path) for path in paths])

    def _is_known(self, path: Path) -> bool:
        try:
            return all(self._digest(file.resolve(strict=True)) for file, _ in _files(path))
        except OSError:
            return False

    def open(self, sha256: str) -> tuple[IO[bytes], int]:
        """Open an offered file; return it with its size in bytes.

        Raises:
            NodeError: no offered file has this digest.
        """
        path = self._offered.get(sha256)
        if path is None:
            raise NodeError(f"the head offers no weights with the SHA-256 {sha256}")
        try:
            file = path.open("rb")
        except OSError as error:
            raise NodeError(f"the weights {path} cannot be read: {error.strerror}") from error
        return file, os.fstat(file.fileno()).st_size

    def _tree(self, path: Path) -> WeightTree:
        known = dict(self._known)
        files = []
        try:
            for file, name in _files(path):
                entry = self._entry(file, name)
                self._offered[entry.sha256] = file
                files.append(entry)
        except OSError as error:
            raise NodeError(
                f"the weights {error.filename or path} cannot be read: {error.strerror}"
            ) from error
        finally:
            if self._known != known:
                self._save()
        return WeightTree(path.name, tuple(files), single=not path.is_dir())

    def _entry(self, file: Path, name: str) -> WeightFile:
        real = file.resolve(strict=True)
        known = self._digest(real)
        if known is None:
            status = real.stat()
            known = _Known(status.st_size, status.st_mtime_ns, status.st_ino, _sha256(real))
            self._known.pop(str(real), None)
            self._known[str(real)] = known
        return WeightFile(name, known.size, known.sha256)

    def _digest(self, real: Path) -> _Known | None:
        """Return the digest of a file; None if it is unknown or the file has changed."""
        known, status = self._known.get(str(real)), real.stat()
        found = (status.st_size, status.st_mtime_ns, status.st_ino)
        return known if known is not None and (known.size, known.changed, known.inode) == found else None

    def _save(self) -> None:
        fresh = self._file.with_name(f"{self._file.name}.new")
        try:
            with self._saving:
                fresh.write_bytes(msgspec.json.encode(self._known))
                fresh.replace(self._file)
        except OSError as error:
            _log.warning("cannot write %s: %s: digests are computed again later", self._file, error.strerror)


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the regular files below ``path``, with their relative names, in a fixed order."""
    if not path.is_dir():
        yield path, path.name
        return
    for folder, folders, names in os.walk(path, followlinks=True, onerror=_raise):
        folders.sort()
        for name in sorted(names):
            file = Path(folder) / name
            if file.is_file():
                yield file, file.relative_to(path).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()
