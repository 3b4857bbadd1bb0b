"""A node whose agent is in this process: files are copied between two folders of this machine."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from appliance.cluster.base import NodeFolders

P = TypeVar("P", bound=asyncio.Protocol)


class LocalNode:
    """The agent of a node with its data in ``home``; ``before`` is awaited before each transfer of a file."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folders = NodeFolders(home / "run", home / "run" / "outputs", home / "cache")
        self.inputs = self.folders.run_dir / "inputs"
        for folder in (self.inputs, self.folders.outputs, self.folders.cache):
            folder.mkdir(parents=True, exist_ok=True)
        self.problem: Exception | None = None  # raised by each transfer
        self.held: dict[str, asyncio.Event] = {}  # by name of a file: its transfer waits for the event
        self.dropped: list[str] = []
        self.prepared: list[str] = []
        self.weights: list[Path] = []
        self.kept: list[str] = []  # of the last copy of weights
        self.used: dict[str, int] = {}
        self.sockets: dict[str, asyncio.Transport] = {}  # the last connection to each socket

    async def open_socket(self, name: str, protocol: Callable[[], P]) -> tuple[object, P]:
        path = str(self.folders.run_dir / name)
        transport, opened = await asyncio.get_running_loop().create_unix_connection(protocol, path)
        self.sockets[name] = transport
        return transport, opened

    async def in_use(self) -> dict[str, int]:
        return self.used

    async def prepare(self, modules: list[str]) -> None:
        self.prepared += modules

    async def send_file(self, source: Path, prediction: str) -> str:
        await self._transfer(source.name)
        target = self.inputs / prediction / secrets.token_hex(8) / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        return str(target)

    async def fetch_file(self, path: str, target: Path) -> None:
        """As ``NodeClient``: the folder of ``target`` must exist, and no file there."""
        await self._transfer(target.name)
        with target.open("xb") as file:
            file.write(Path(path).read_bytes())

    async def drop_files(self, paths: list[str]) -> None:
        self.dropped += paths
        for path in map(Path, paths):
            assert {self.inputs, self.folders.outputs} & set(path.parents), path
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    async def drop_others(self, predictions: list[str]) -> None:
        for folder in (self.inputs, self.folders.outputs):
            for path in folder.iterdir():
                if path.name not in predictions:
                    shutil.rmtree(path)

    async def copy_weights(
        self,
        paths: Sequence[Path],
        keep: Iterable[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, str]:
        if self.problem is not None:
            raise self.problem
        self.weights += paths
        self.kept = list(keep)
        copies = {}
        for path in paths:
            copy = self.home / "weights" / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, copy, dirs_exist_ok=True)
            else:
                shutil.copy(path, copy)
            copies[str(path)] = str(copy)
        return copies

    async def has_weights(self, paths: Sequence[Path]) -> bool:
        return all((self.home / "weights" / path.name).exists() for path in paths)

    async def _transfer(self, name: str) -> None:
        if self.problem is not None:
            raise self.problem
        if (held := self.held.get(name)) is not None:
            await held.wait()
