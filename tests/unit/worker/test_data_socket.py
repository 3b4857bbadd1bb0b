"""The socket between gateway and replica: nothing is lost, whoever connects, closes or reads slowly."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.domain.errors import OutOfMemory
from appliance.domain.prediction import Emitted, Job, Output
from appliance.worker import data_socket
from appliance.worker.data_socket import ReplicaConnection
from appliance.worker.protocol import Cancel, Commands, Events, Run, StreamEnd, WorkerFailed
from appliance.worker.replica import Replica
from tests.support.scripted_worker import ScriptedWorker, done, output, spec


@pytest.fixture
async def path(replica: Replica, tmp_path: Path) -> AsyncIterator[Path]:
    await replica.load(spec())
    server = await data_socket.listen(replica, tmp_path / "runner-0.sock")
    yield tmp_path / "runner-0.sock"
    server.close()


async def events(connection: ReplicaConnection, count: int) -> list[Emitted]:
    """Return the next ``count`` events."""
    found: list[Emitted] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            message = await connection.messages.get()
            assert isinstance(message, Events)
            found += message.events
    return found


async def until_sent(worker: ScriptedWorker, count: int) -> None:
    async with asyncio.timeout(10):
        while len(worker.sent) < count:
            await asyncio.sleep(0)


async def test_jobs_go_to_the_worker_and_events_come_back(path: Path, workers: list[ScriptedWorker]) -> None:
    connection = await data_socket.connect(path)
    connection.send(Commands(jobs=[Job("a", 1, {"text": "x"})]))
    connection.send(Commands(cancels=["a"]))
    await until_sent(workers[0], 2)
    assert workers[0].sent == [Run([Job("a", 1, {"text": "x"})]), Cancel(["a"])]
    workers[0].says(output("a", 1), done("a", 2))
    assert await events(connection, 2) == [output("a", 1), done("a", 2)]
    connection.close()


async def test_only_this_user_can_connect(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_gateway_that_connects_gets_every_event_that_is_not_acknowledged(
    path: Path, workers: list[ScriptedWorker]
) -> None:
    first = await data_socket.connect(path)
    first.send(Commands(jobs=[Job("a", 1, {}), Job("b", 1, {})]))
    await until_sent(workers[0], 1)
    workers[0].says(output("a", 1), done("b", 1))
    assert await events(first, 2) == [output("a", 1), done("b", 1)]
    first.close()
    workers[0].says(output("a", 2))
    second = await data_socket.connect(path)
    assert await events(second, 3) == [output("a", 1), output("a", 2), done("b", 1)]
    second.send(Commands(acknowledged=["b"]))
    third = await data_socket.connect(path)
    assert await second.messages.get() == StreamEnd()  # only one gateway is served
    assert await second.messages.get() is None
    assert await events(third, 2) == [output("a", 1), output("a", 2)]
    third.close()


async def test_a_gateway_that_reads_slowly_loses_nothing(path: Path, workers: list[ScriptedWorker]) -> None:
    connection = await data_socket.connect(path)
    connection.send(Commands(jobs=[Job("a", 1, {})]))
    await until_sent(workers[0], 1)
    connection.transport.pause_reading()
    texts = [str(n) * 100_000 for n in range(50)]
    for n, text in enumerate(texts, 1):
        workers[0].says(output("a", n, text))
        await asyncio.sleep(0)
    connection.transport.resume_reading()
    assert [each.event for each in await events(connection, 50)] == [Output([text]) for text in texts]
    connection.close()


async def test_the_end_of_a_worker_comes_after_its_events(path: Path, workers: list[ScriptedWorker]) -> None:
    connection = await data_socket.connect(path)
    connection.send(Commands(jobs=[Job("a", 1, {})]))
    await until_sent(workers[0], 1)
    workers[0].says(output("a", 1))
    workers[0].receive(WorkerFailed("CUDA out of memory", out_of_memory=True))
    workers[0].die("exited with code 1")
    assert await events(connection, 1) == [output("a", 1)]
    end = await connection.messages.get()
    assert isinstance(end, StreamEnd)
    assert end.failure is not None
    error = end.failure.as_error()
    assert isinstance(error, OutOfMemory)
    assert "CUDA out of memory" in error.detail
    assert await connection.messages.get() is None


async def test_a_closed_connection_is_reported_and_takes_no_commands(path: Path) -> None:
    connection = await data_socket.connect(path)
    connection.close()
    assert await connection.messages.get() is None
    connection.send(Commands(cancels=["a"]))


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await data_socket.connect(tmp_path / "runner-1.sock")
