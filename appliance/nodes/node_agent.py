"""The agent of a node: gives the head access to the sockets, files and measurements of this machine."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from appliance.domain.errors import NodeError
from appliance.nodes import identity, paths
from appliance.nodes.channel import Channel, reason
from appliance.nodes.identity import Identity
from appliance.nodes.messages import (
    AskFacts,
    AskInUse,
    Copied,
    Copying,
    CopyWeights,
    DropFiles,
    DropOthers,
    Facts,
    FetchFile,
    FindWeights,
    InUse,
    NodeFacts,
    NodeRequest,
    Ok,
    OpenSocket,
    Ping,
    PrepareModules,
    ReadWeights,
    SendFile,
    SocketOpened,
    Source,
    Stored,
    WeightsFound,
)
from appliance.nodes.server import AgentServer, Peer, RequestRoute, pipe, send_file
from appliance.nodes.weight_store import WeightStore

_HEAD: Final[frozenset[identity.Role | None]] = frozenset({"head"})
_MEMBERS: Final[frozenset[identity.Role | None]] = frozenset({"head", "node"})
_PROGRESS_INTERVAL: Final = 2.0  # seconds between messages about a copy


class NodeAgent:
    """Answers the head, and other nodes that copy weights from this one."""

    def __init__(
        self,
        own: Identity,
        facts: NodeFacts,
        *,
        in_use: Callable[[], dict[str, int]],
        prepare: Callable[[list[str]], Awaitable[None]],
    ) -> None:
        """``in_use`` measures the devices; ``prepare`` lets the zygote import modules."""
        self.last_ping = time.monotonic()
        self._identity = own
        self._facts = facts
        self._in_use = in_use
        self._prepare = prepare
        self._inputs = Path(facts.run_dir) / "inputs"
        self._outputs = Path(facts.outputs)
        self._weights = WeightStore(own.folder / "weights", self._connect)
        routes = {
            Ping: RequestRoute(self._ping, _HEAD),
            AskFacts: RequestRoute(self._ask_facts, _HEAD),
            AskInUse: RequestRoute(self._ask_in_use, _HEAD),
            PrepareModules: RequestRoute(self._prepare_modules, _HEAD),
            OpenSocket: RequestRoute(self._open_socket, _HEAD),
            SendFile: RequestRoute(self._send_file, _HEAD),
            FetchFile: RequestRoute(self._fetch_file, _HEAD),
            DropFiles: RequestRoute(self._drop_files, _HEAD),
            DropOthers: RequestRoute(self._drop_others, _HEAD),
            CopyWeights: RequestRoute(self._copy_weights, _HEAD),
            FindWeights: RequestRoute(self._find_weights, _HEAD),
            ReadWeights: RequestRoute(self._read_weights, _MEMBERS),
        }
        context = identity.server_context(own, unauthenticated=False)
        self._server = AgentServer(routes, NodeRequest, context)

    async def start(self, listener: socket.socket) -> None:
        """Delete files of earlier predictions, and listen."""
        for folder in (self._inputs, self._outputs):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # a process may still write there
        await self._server.start(listener)

    async def close(self) -> None:
        await self._server.close()

    async def _connect(self, source: Source) -> Channel:
        channel = await Channel.open(source.host, source.port, identity.client_context(self._identity))
        if channel.peer is None or channel.peer[1] != source.name:
            channel.close()
            raise ConnectionError(f"another member of the cluster answers at {source.host}:{source.port}")
        return channel

    async def _ping(self, _: Ping, channel: Channel, __: Peer) -> None:
        self.last_ping = time.monotonic()
        await channel.send(Ok())

    async def _ask_facts(self, _: AskFacts, channel: Channel, __: Peer) -> None:
        await channel.send(Facts(self._facts))

    async def _ask_in_use(self, _: AskInUse, channel: Channel, __: Peer) -> None:
        await channel.send(InUse(await asyncio.to_thread(self._in_use)))

    async def _prepare_modules(self, request: PrepareModules, channel: Channel, _: Peer) -> None:
        await self._prepare(request.modules)
        await channel.send(Ok())

    async def _open_socket(self, request: OpenSocket, channel: Channel, _: Peer) -> None:
        path = paths.socket_path(Path(self._facts.run_dir), request.name)
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError as error:
            raise NodeError(f"nothing listens at the socket {request.name}: {reason(error)}") from error
        await channel.send(SocketOpened())
        await pipe(channel, reader, writer)

    async def _send_file(self, request: SendFile, channel: Channel, _: Peer) -> None:
        folder = self._inputs
        if request.prediction is not None:
            folder /= paths.file_name(request.prediction)
        folder /= secrets.token_hex(16)
        target = folder / paths.file_name(request.name)
        try:
            folder.mkdir(mode=0o700, parents=True)
            with target.open("xb") as file:
                await channel.send(Ok())
                failure = await channel.receive_content(file, request.size)
            if failure is not None:
                raise failure
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and channel.is_usable:
                raise NodeError(f"{target} cannot be written: {error.strerror}") from error
            raise
        await channel.send(Stored(str(target)))

    async def _fetch_file(self, request: FetchFile, channel: Channel, _: Peer) -> None:
        file = paths.open_below(request.path, [self._outputs, self._inputs])
        await send_file(channel, file, os.fstat(file.fileno()).st_size)

    async def _drop_files(self, request: DropFiles, channel: Channel, _: Peer) -> None:
        for path in request.paths:
            await asyncio.to_thread(paths.remove_below, path, [self._outputs, self._inputs])
        await channel.send(Ok())

    async def _drop_others(self, request: DropOthers, channel: Channel, _: Peer) -> None:
        kept = set(request.predictions)
        for folder in (self._inputs, self._outputs):
            for name in await asyncio.to_thread(os.listdir, folder):
                if name not in kept:
                    await asyncio.to_thread(paths.remove_below, str(folder / name), [folder])
        await channel.send(Ok())

    async def _copy_weights(self, request: CopyWeights, channel: Channel, _: Peer) -> None:
        copied = 0

        def count(size: int) -> None:
            nonlocal copied
            copied += size

        total = self._weights.missing(request.trees)
        copying = asyncio.ensure_future(
            self._weights.copy(request.trees, request.sources, request.keep, count)
        )
        try:
            while not (await asyncio.wait({copying}, timeout=_PROGRESS_INTERVAL))[0]:
                await channel.send(Copying(copied, total))
            done = await copying
            await channel.send(Copied(done.paths, copied, done.deleted))
        finally:
            copying.cancel()

    async def _find_weights(self, request: FindWeights, channel: Channel, _: Peer) -> None:
        await channel.send(WeightsFound(await asyncio.to_thread(self._weights.has, request.trees)))

    async def _read_weights(self, request: ReadWeights, channel: Channel, _: Peer) -> None:
        path = self._weights.open(request.sha256)
        await send_file(channel, path.open("rb"), path.stat().st_size, request.offset)
