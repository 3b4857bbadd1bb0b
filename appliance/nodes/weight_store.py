"""Copies of weights on a node, in ``HOME/cluster/weights``.

``blobs`` has each file once, under its SHA-256. ``trees`` has a folder for each path of weights, with hard
links to blobs under the names that the files have on the head.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from appliance.domain.errors import NodeError
from appliance.domain.units import readable_bytes
from appliance.nodes import paths
from appliance.nodes.channel import CHUNK, CONNECTION_ERRORS, Channel, reason
from appliance.nodes.messages import Content, ReadWeights, Source, WeightFile, WeightTree

_log = logging.getLogger(__name__)

_CONCURRENCY: Final = 4  # files that are copied at the same time
_FULL: Final = 0.9  # share of the disk; above it, unused copies are deleted

Connect = Callable[[Source], Awaitable[Channel]]


class CopiedTrees(NamedTuple):
    """The result of a copy: the paths of its trees, and the paths of other trees that were deleted."""

    paths: list[str]
    deleted: list[str]


class WeightStore:
    """The weights that this node has copied."""

    def __init__(self, folder: Path, connect: Connect) -> None:
        self._blobs = folder / "blobs"
        self._trees = folder / "trees"
        self._connect = connect
        self._copying: dict[str, asyncio.Lock] = {}  # by SHA-256: each file is copied once
        self._in_use: Counter[str] = Counter()  # running copies by SHA-256, and by path of a tree
        self._counting = threading.Lock()  # held while ``_in_use`` changes
        self._changing = threading.Lock()  # held while trees are linked or deleted, which may take seconds
        for each in (self._blobs, self._trees):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)

    def has(self, trees: Iterable[WeightTree]) -> bool:
        """Return whether there is a copy of all files of ``trees``."""
        return all(self._has_blob(file) for tree in trees for file in tree.files)

    def missing(self, trees: Iterable[WeightTree]) -> int:
        """Return the bytes of the files of ``trees`` that are not copied yet."""
        return sum(file.size for file in self._missing(trees).values())

    def _missing(self, trees: Iterable[WeightTree]) -> dict[str, WeightFile]:
        return {file.sha256: file for tree in trees for file in tree.files if not self._has_blob(file)}

    def open(self, sha256: str) -> Path:
        """Return the path of a copied file.

        Raises:
            NodeError: this node has no copy of it.
        """
        path = self._blobs / paths.digest(sha256)
        if not path.is_file():
            raise NodeError(f"the node has no weights with the SHA-256 {sha256}")
        return path

    async def copy(
        self,
        trees: Sequence[WeightTree],
        sources: Sequence[Source],
        keep: Iterable[str],
        on_progress: Callable[[int], None],
    ) -> CopiedTrees:
        """Copy the files that are missing.

        ``on_progress`` gets numbers of bytes. ``keep`` are paths of trees that must not be deleted. Files and
        trees of other copies that run at the same time are not deleted either.

        Raises:
            NodeError: no source could send a file, or the disk is too small.
        """
        with self._protected(trees):
            try:
                deleted = await asyncio.to_thread(self._make_space, trees, {*map(Path, keep)})
                await self._fetch_all(list(self._missing(trees).values()), sources, on_progress)
                paths = [str(await asyncio.to_thread(self._link, tree)) for tree in trees]
            except OSError as error:
                raise NodeError(f"weights cannot be written: {error}") from error
        return CopiedTrees(paths, deleted)

    @contextlib.contextmanager
    def _protected(self, trees: Sequence[WeightTree]) -> Iterator[None]:
        """Keep the files of ``trees`` from being deleted by other copies."""
        used = [file.sha256 for tree in trees for file in tree.files]
        used += [str(self._location(tree).parent) for tree in trees]
        with self._counting:
            self._in_use.update(used)
        try:
            yield
        finally:
            with self._counting:
                self._in_use.subtract(used)
                self._in_use = +self._in_use

    async def _fetch_all(
        self, missing: list[WeightFile], sources: Sequence[Source], on_progress: Callable[[int], None]
    ) -> None:
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def fetch(file: WeightFile) -> None:
            async with slots, self._copying.setdefault(file.sha256, asyncio.Lock()):
                if not self._has_blob(file):
                    await self._fetch(file, sources, on_progress)

        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for file in sorted(missing, key=lambda file: -file.size):
                    group.create_task(fetch(file))
        except* (NodeError, OSError) as failed:
            failure = failed.exceptions[0]
        if failure is not None:
            raise failure

    async def _fetch(
        self, file: WeightFile, sources: Sequence[Source], on_progress: Callable[[int], None]
    ) -> None:
        failures = []
        for source in sources:
            try:
                channel = await self._connect(source)
            except CONNECTION_ERRORS as error:
                failures.append(f"{source.name}: {reason(error)}")
                continue
            try:
                await self._receive(channel, file, on_progress)
            except NodeError as error:
                failures.append(f"{source.name}: {error}")
            except CONNECTION_ERRORS as error:
                failures.append(f"{source.name}: {reason(error)}")
            else:
                return
            finally:
                channel.close()
        raise NodeError(f"the weights {file.name} cannot be copied: {'; '.join(failures) or 'no source'}")

    async def _receive(self, channel: Channel, file: WeightFile, on_progress: Callable[[int], None]) -> None:
        """Copy a file; continue where an earlier copy stopped."""
        target = self._blobs / paths.digest(file.sha256)
        partial = target.with_suffix(".part")
        offset = partial.stat().st_size if partial.exists() else 0
        if offset > file.size:
            partial.unlink()
            offset = 0
        await channel.send(ReadWeights(file.sha256, offset))
        content = await channel.reply(Content)
        if offset + content.size != file.size:
            raise NodeError(
                f"has {readable_bytes(offset + content.size)} instead of {readable_bytes(file.size)}"
            )
        digest = hashlib.sha256()
        with partial.open("ab") as opened:
            failure = await channel.receive_content(opened, content.size, on_progress, digest)
            if failure is not None:
                raise NodeError(f"{partial} cannot be written: {failure.strerror}") from failure
            await asyncio.to_thread(os.fsync, opened.fileno())
        found = digest.hexdigest() if offset == 0 else await asyncio.to_thread(_sha256, partial)
        if found != file.sha256:
            partial.unlink()
            raise NodeError(f"the SHA-256 of {file.name} is wrong: the file on the disk may be damaged")
        partial.chmod(0o400)
        partial.rename(target)

    def _has_blob(self, file: WeightFile) -> bool:
        try:
            return (self._blobs / paths.digest(file.sha256)).stat().st_size == file.size
        except FileNotFoundError:
            return False

    def _location(self, tree: WeightTree) -> Path:
        """Return the path of the copy. It depends on the content, so two versions have two paths."""
        mark = hashlib.sha256(msgspec.msgpack.encode(tree)).hexdigest()[:32]
        return self._trees / mark / paths.file_name(tree.name)

    def _link(self, tree: WeightTree) -> Path:
        """Make the folder of a tree whose files are copied; return its path."""
        with self._changing:
            return self._linked(tree)

    def _linked(self, tree: WeightTree) -> Path:
        location = self._location(tree)
        if location.exists():
            os.utime(location.parent)  # the time of its last use
            return location
        fresh = self._trees / f".{location.parent.name}.{os.getpid()}.{time.monotonic_ns()}"
        top = fresh / location.name
        for file in tree.files:
            target = top if tree.single else top / paths.relative_name(file.name)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target.hardlink_to(self._blobs / file.sha256)
        top.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not tree.files:
            top.mkdir(mode=0o700, exist_ok=True)
        try:
            fresh.rename(location.parent)
        except OSError:  # another request has made the same folder
            shutil.rmtree(fresh)
        return location

    def _make_space(self, trees: Sequence[WeightTree], keep: set[Path]) -> list[str]:
        """Delete copies, the least recently used first, until the disk has space for ``trees``.

        Returns the paths of the deleted trees.

        Raises:
            NodeError: the disk stays too small.
        """
        deleted: list[str] = []
        with self._changing:
            needed = self.missing(trees)
            unused = self._unused(keep)
            while self._is_full(needed) and unused:
                tree = unused.pop(0)
                _log.info("deleting the copy of weights in %s: the disk is almost full", tree)
                deleted += [str(path) for path in tree.iterdir()]
                shutil.rmtree(tree, ignore_errors=True)
                self._drop_unused_blobs()
        free = shutil.disk_usage(self._blobs).free
        if needed > free:
            raise NodeError(
                f"the disk of {self._blobs} has {readable_bytes(free)} left, and the weights need "
                f"{readable_bytes(needed)}: free space there"
            )
        return deleted

    def _unused(self, keep: set[Path]) -> list[Path]:
        """Return the folders of the trees that may be deleted, the least recently used first."""
        kept = {path.parent if path.parent.parent == self._trees else path for path in keep}
        found = (tree for tree in self._trees.iterdir() if tree not in kept and not self._in_use[str(tree)])
        return sorted(found, key=lambda tree: tree.stat().st_mtime)

    def _is_full(self, needed: int) -> bool:
        disk = shutil.disk_usage(self._blobs)
        return disk.used + needed > _FULL * (disk.used + disk.free)

    def _drop_unused_blobs(self) -> None:
        for blob in self._blobs.iterdir():
            with contextlib.suppress(OSError):
                if blob.suffix != ".part" and blob.stat().st_nlink == 1 and not self._in_use[blob.name]:
                    blob.unlink()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()
