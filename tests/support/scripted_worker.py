"""A worker process whose messages the test writes itself, for a replica without real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance.domain.prediction import Done, Emitted, Output
from appliance.runners.base import LoadSpec
from appliance.worker.protocol import Events, MessageReader, WorkerCommand, WorkerEvent, WorkerReady, encode

PID = 1 << 23  # more than there can be: of no process


def spec(version: str = "a") -> LoadSpec:
    return LoadSpec(
        model="test/echo",
        version=version * 64,
        kind="echo",
        options={},
        weights=None,
        device="cpu",
        memory=1,
        threads=1,
        concurrency=1,
        cache="/nonexistent",
    )


def output(id: str, n: int, text: str = "x") -> Emitted:
    return Emitted(id, 1, n, Output([text]))


def done(id: str, n: int) -> Emitted:
    return Emitted(id, 1, n, Done("succeeded"))


class ScriptedWorker:
    """Stands in for ``WorkerHandle``: remembers what it is told and says what the test wants."""

    answers: tuple[WorkerEvent, ...] = (WorkerReady(),)
    started: list[ScriptedWorker]

    def __init__(self, spec: LoadSpec, receive: Callable[[WorkerEvent], None]) -> None:
        self.spec = spec
        self.receive = receive
        self.sent: list[WorkerCommand] = []
        self.pid = PID
        self.exit_code: int | None = None
        self.forked = True
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(
        cls,
        zygote_socket: str,
        spec: LoadSpec,
        *,
        log: Path,
        pid_files: Path,
        socket_path: Path,
        receive: Callable[[WorkerEvent], None],
    ) -> ScriptedWorker:
        worker = cls(spec, receive)
        cls.started.append(worker)
        for answer in cls.answers:
            asyncio.get_running_loop().call_soon(receive, answer)
        return worker

    def send(self, message: WorkerCommand) -> None:
        self.sent.append(message)

    def says(self, *events: Emitted) -> None:
        for message in MessageReader(msgspec.msgpack.Decoder(WorkerEvent)).feed(encode(Events(list(events)))):
            self.receive(message)

    def die(self, how: str) -> None:
        self.end.set_result(how)

    async def wait(self) -> str:
        return await asyncio.shield(self.end)

    async def kill(self, grace: float = 0.0) -> None:
        if not self.end.done():
            self.end.set_result("was killed by signal 9 (SIGKILL)")

    def log_tail(self, lines: int = 20) -> str:
        return "last words"
