"""The sockets to replica and worker process: no event is lost if one connects, closes or is slow."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import OutOfMemory
from appliance.domain.prediction import Done, Emitted, Job, Output
from appliance.worker import data_socket
from appliance.worker.data_socket import DataConnection
from appliance.worker.process.event_sender import EventSender, EventStream
from appliance.worker.process.gateway_connection import listen
from appliance.worker.protocol import (
    Cancel,
    Commands,
    MessageReader,
    PeakMemory,
    Run,
    StreamEnd,
    WorkerEvent,
    WorkerFailed,
)
from appliance.worker.replica import Replica
from tests.support.scripted_worker import ScriptedWorker, done, output, spec


class Gateway:
    """A gateway that reads whatever comes."""

    def __init__(self, connection: DataConnection) -> None:
        self.connection = connection
        self.events: list[Emitted] = []
        self.rest: list[EngineMetrics | PeakMemory | StreamEnd] = []
        self.reading = asyncio.create_task(self._read())

    @classmethod
    async def connected(cls, folder: Path, *held: str) -> Gateway:
        paths = folder / "runner-0.sock", folder / "runner-0-worker.sock"
        return cls(await data_socket.connect(*paths, held))

    async def _read(self) -> None:
        async for message in self.connection.messages():
            if isinstance(message, list):
                self.events += message
            else:
                self.rest.append(message)

    async def until(self, count: int) -> list[Emitted]:
        """Return the first ``count`` events."""
        async with asyncio.timeout(60):
            while len(self.events) < count:
                await asyncio.sleep(0)
        return self.events

    async def ended(self) -> list[EngineMetrics | PeakMemory | StreamEnd]:
        await asyncio.wait_for(self.reading, 60)
        return self.rest

    def close(self) -> None:
        self.connection.close()


class DirectWorker:
    """A worker process with a real socket for the gateway; ``release`` sends held messages to the replica."""

    def __init__(self, worker: ScriptedWorker) -> None:
        self.worker = worker
        self.jobs: list[Job] = []
        self.cancels: list[str] = []
        self.sender = EventSender(self._queue)
        self._queued: list[bytes] = []
        self._reader = MessageReader(msgspec.msgpack.Decoder(WorkerEvent))
        self.held_back = False

    def _queue(self, message: bytes) -> None:
        self._queued.append(message)
        if not self.held_back:
            self.release()

    def release(self) -> None:
        """Let the replica have what it was not given yet."""
        self.held_back = False
        queued, self._queued = self._queued, []
        for message in self._reader.feed(b"".join(queued)):
            self.worker.receive(message)

    def stream(self, id: str) -> EventStream:
        return EventStream(Job(id, 1, {}), self.sender)


@pytest.fixture
async def folder(replica: Replica, tmp_path: Path) -> AsyncIterator[Path]:
    await replica.load(spec())
    server = await data_socket.listen(replica, tmp_path / "runner-0.sock")
    yield tmp_path
    server.close()


@pytest.fixture
async def direct(folder: Path, workers: list[ScriptedWorker]) -> AsyncIterator[DirectWorker]:
    worker = DirectWorker(workers[0])
    path = folder / "runner-0-worker.sock"
    server = await listen(path, worker.sender, worker.jobs.extend, worker.cancels.extend)
    assert server is not None
    yield worker
    server.close()


async def until_sent(worker: ScriptedWorker, count: int) -> None:
    async with asyncio.timeout(60):
        while len(worker.sent) < count:
            await asyncio.sleep(0)


async def until_jobs(direct: DirectWorker, count: int) -> None:
    async with asyncio.timeout(60):
        while len(direct.jobs) < count:
            await asyncio.sleep(0)


async def switched(gateway: Gateway) -> None:
    """Wait until jobs go to the worker process itself."""
    async with asyncio.timeout(60):
        while not gateway.connection._direct:
            await asyncio.sleep(0)


async def test_jobs_go_to_the_worker_and_events_come_back(
    folder: Path, workers: list[ScriptedWorker]
) -> None:
    gateway = await Gateway.connected(folder)
    gateway.connection.send(Commands(jobs=[Job("a", 1, {"text": "x"})]))
    gateway.connection.send(Commands(cancels=["a"]))
    await until_sent(workers[0], 2)
    assert workers[0].sent == [Run([Job("a", 1, {"text": "x"})]), Cancel(["a"])]
    workers[0].says(output("a", 1), done("a", 2))
    assert await gateway.until(2) == [output("a", 1), done("a", 2)]
    gateway.close()


async def test_only_this_user_can_connect(folder: Path, direct: DirectWorker) -> None:
    sockets = sorted(folder.glob("*.sock"))
    assert [path.name for path in sockets] == ["runner-0-worker.sock", "runner-0.sock"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o600, 0o600]


async def test_a_gateway_that_connects_gets_every_event_that_is_not_acknowledged(
    folder: Path, workers: list[ScriptedWorker]
) -> None:
    first = await Gateway.connected(folder)
    first.connection.send(Commands(jobs=[Job("a", 1, {}), Job("b", 1, {})]))
    await until_sent(workers[0], 1)
    workers[0].says(output("a", 1), done("b", 1))
    assert await first.until(2) == [output("a", 1), done("b", 1)]
    first.close()
    workers[0].says(output("a", 2))
    second = await Gateway.connected(folder)
    assert await second.until(3) == [output("a", 1), output("a", 2), done("b", 1)]
    second.connection.send(Commands(acknowledged=["b"]))
    third = await Gateway.connected(folder)
    assert await second.ended() == [StreamEnd()]  # only one gateway is served
    assert await third.until(2) == [output("a", 1), output("a", 2)]
    third.close()


async def test_a_gateway_that_reads_slowly_loses_nothing(folder: Path, workers: list[ScriptedWorker]) -> None:
    gateway = await Gateway.connected(folder)
    gateway.connection.send(Commands(jobs=[Job("a", 1, {})]))
    await until_sent(workers[0], 1)
    transport = gateway.connection._replica._transport
    transport.pause_reading()
    texts = [str(n) * 100_000 for n in range(50)]
    for n, text in enumerate(texts, 1):
        workers[0].says(output("a", n, text))
        await asyncio.sleep(0)
    transport.resume_reading()
    assert [each.event for each in await gateway.until(50)] == [Output([text]) for text in texts]
    gateway.close()


async def test_the_end_of_a_worker_comes_after_its_events(
    folder: Path, workers: list[ScriptedWorker]
) -> None:
    gateway = await Gateway.connected(folder)
    gateway.connection.send(Commands(jobs=[Job("a", 1, {})]))
    await until_sent(workers[0], 1)
    workers[0].says(output("a", 1))
    workers[0].receive(WorkerFailed("CUDA out of memory", out_of_memory=True))
    workers[0].die("exited with code 1")
    (end,) = await gateway.ended()
    assert gateway.events == [output("a", 1)]
    assert isinstance(end, StreamEnd)
    assert end.failure is not None
    error = end.failure.as_error()
    assert isinstance(error, OutOfMemory)
    assert "CUDA out of memory" in error.detail


async def test_a_closed_connection_is_reported_and_takes_no_commands(folder: Path) -> None:
    gateway = await Gateway.connected(folder)
    gateway.close()
    assert await gateway.ended() == []
    gateway.connection.send(Commands(cancels=["a"]))


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await Gateway.connected(tmp_path)


# Without the replica


async def test_jobs_and_events_bypass_the_replica(
    folder: Path, replica: Replica, direct: DirectWorker, workers: list[ScriptedWorker]
) -> None:
    gateway = await Gateway.connected(folder)
    await switched(gateway)
    direct.held_back = True
    gateway.connection.send(Commands(jobs=[Job("a", 1, {"text": "x"})]))
    gateway.connection.send(Commands(cancels=["a"]))
    await until_jobs(direct, 1)
    assert direct.jobs == [Job("a", 1, {"text": "x"})]
    direct.stream("a").emit(Output(["x"]))
    assert await gateway.until(1) == [output("a", 1)]
    assert (direct.cancels, workers[0].sent) == (["a"], [])
    assert (await replica.stats()).held == []
    direct.release()
    assert (await replica.stats()).held == ["a"]
    gateway.close()


async def test_the_worker_process_may_accept_a_gateway_before_the_replica(
    folder: Path, replica: Replica, direct: DirectWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[Any] = []
    with monkeypatch.context() as busy:
        busy.setattr(replica, "attach", waiting.append)
        gateway = await Gateway.connected(folder)
        async with asyncio.timeout(60):
            while not waiting or direct.sender._write_to_gateway is None:
                await asyncio.sleep(0)
        direct.sender.add_received([Job("a", 1, {})])
        direct.stream("a").emit(Output(["x"]))
        async with asyncio.timeout(60):
            while not replica._event_buffer.events():
                await asyncio.sleep(0)
    replica.attach(*waiting)
    await switched(gateway)
    direct.stream("b").emit(Output(["y"]))
    assert (await gateway.until(3))[-1] == output("b", 1, "y")
    assert gateway.events[:2] == [output("a", 1)] * 2  # from both; the engine ignores the second
    gateway.close()


async def test_the_next_gateway_gets_from_the_replica_what_the_first_got_directly(
    folder: Path, direct: DirectWorker
) -> None:
    first = await Gateway.connected(folder)
    await switched(first)
    first.connection.send(Commands(jobs=[Job("a", 1, {}), Job("b", 1, {})]))
    await until_jobs(direct, 2)
    a, b = direct.stream("a"), direct.stream("b")
    a.emit(Output(["x"]))
    b.emit(Done("succeeded"))
    assert await first.until(2) == [output("a", 1), done("b", 1)]
    first.close()
    a.emit(Output(["y"]))
    a.emit(Done("succeeded"))
    second = await Gateway.connected(folder)
    expected = [output("a", 1), output("a", 2, "y"), done("a", 3), done("b", 1)]
    assert sorted(await second.until(4), key=lambda each: (each.id, each.n)) == expected
    second.close()


async def test_events_keep_their_order_when_the_worker_takes_over_from_the_replica(
    folder: Path, replica: Replica, direct: DirectWorker
) -> None:
    replica.receive(Commands(jobs=[Job("a", 1, {})]))
    a = direct.stream("a")
    direct.held_back = True  # the replica is slow
    a.emit(Output(["1"]))
    gateway = await Gateway.connected(folder)
    async with asyncio.timeout(60):
        while direct.sender._write_to_gateway is None:
            await asyncio.sleep(0)
    for text in "23":
        a.emit(Output([text]))
        while direct.sender.pending:
            await asyncio.sleep(0)
    for _ in range(20):  # what the worker sends itself arrives, and is kept back
        await asyncio.sleep(0)
    assert gateway.events == []
    direct.release()
    assert await gateway.until(3) == [output("a", n, str(n)) for n in (1, 2, 3)]
    a.emit(Done("succeeded"))
    assert (await gateway.until(4))[3] == done("a", 4)
    assert len(gateway.events) == 4
    gateway.close()


async def test_a_cancel_does_not_overtake_a_job_that_went_through_the_replica(
    folder: Path, direct: DirectWorker, workers: list[ScriptedWorker]
) -> None:
    gateway = await Gateway.connected(folder)
    gateway.connection.send(Commands(jobs=[Job("a", 1, {})]))
    await switched(gateway)
    gateway.connection.send(Commands(jobs=[Job("b", 1, {})], cancels=["a", "b"]))
    await until_sent(workers[0], 2)
    assert workers[0].sent == [Run([Job("a", 1, {})]), Cancel(["a"])]
    await until_jobs(direct, 1)
    assert (direct.jobs, direct.cancels) == ([Job("b", 1, {})], ["b"])
    gateway.close()


async def test_a_job_that_an_earlier_gateway_sent_is_not_run_again(
    folder: Path, replica: Replica, direct: DirectWorker, workers: list[ScriptedWorker]
) -> None:
    first = await Gateway.connected(folder)
    await switched(first)
    first.connection.send(Commands(jobs=[Job("a", 1, {})]))
    await until_jobs(direct, 1)
    direct.stream("a").emit(Output(["x"]))
    await first.until(1)
    first.close()
    second = await Gateway.connected(folder, *(await replica.stats()).held)
    await switched(second)
    second.connection.send(Commands(jobs=[Job("a", 1, {}), Job("b", 1, {})], cancels=["a"]))
    await until_jobs(direct, 2)
    await until_sent(workers[0], 1)
    assert direct.jobs == [Job("a", 1, {}), Job("b", 1, {})]
    assert workers[0].sent == [Cancel(["a"])]
    second.close()


async def test_the_confirmation_of_an_earlier_gateway_is_not_mistaken(
    folder: Path, replica: Replica, direct: DirectWorker
) -> None:
    direct.held_back = True
    first = await Gateway.connected(folder)
    async with asyncio.timeout(60):
        while direct.sender._write_to_gateway is None:
            await asyncio.sleep(0)
    first.close()
    (folder / "runner-0-worker.sock").unlink()  # the second cannot connect to the worker process
    second = await Gateway.connected(folder)
    second.connection.send(Commands(jobs=[Job("a", 1, {})]))
    async with asyncio.timeout(60):
        while (await replica.stats()).held != ["a"]:
            await asyncio.sleep(0)
    direct.release()
    direct.stream("a").emit(Output(["x"]))
    assert await second.until(1) == [output("a", 1)]
    second.close()


async def test_a_worker_that_closes_its_connection_ends_the_messages_after_its_events(
    folder: Path, direct: DirectWorker
) -> None:
    gateway = await Gateway.connected(folder)
    await switched(gateway)
    direct.stream("a").emit(Output(["x"]))
    await gateway.until(1)
    assert gateway.connection._worker is not None
    gateway.connection._worker.close()
    async with asyncio.timeout(60):
        while not gateway.rest:
            await asyncio.sleep(0)
    assert gateway.rest == [StreamEnd()]
    gateway.close()


async def test_a_gateway_that_reads_slowly_delays_the_worker_and_loses_nothing(
    folder: Path, direct: DirectWorker
) -> None:
    gateway = await Gateway.connected(folder)
    await switched(gateway)
    assert gateway.connection._worker is not None
    transport = gateway.connection._worker._transport
    transport.pause_reading()
    gateway.connection.send(Commands(jobs=[Job("a", 1, {})]))
    await until_jobs(direct, 1)
    a = direct.stream("a")
    texts = [str(n) * 100_000 for n in range(50)]
    for text in texts:
        a.emit(Output([text], append=True))
        await asyncio.sleep(0)
    assert direct.sender.pending
    transport.resume_reading()
    a.emit(Done("succeeded"))
    async with asyncio.timeout(60):
        while not (gateway.events and isinstance(gateway.events[-1].event, Done)):
            await asyncio.sleep(0)
    outputs = [each.event for each in gateway.events if isinstance(each.event, Output)]
    assert [value for event in outputs for value in event.values] == texts
    gateway.close()


async def test_events_that_wait_for_a_slow_gateway_come_before_the_takeover(
    folder: Path, replica: Replica, direct: DirectWorker
) -> None:
    replica.receive(Commands(jobs=[Job("a", 1, {})]))
    a = direct.stream("a")
    texts = [str(n) * 500_000 for n in range(30)]  # far more than a socket takes
    for text in texts:
        a.emit(Output([text]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    paths = folder / "runner-0.sock", folder / "runner-0-worker.sock"
    connection = await data_socket.connect(*paths)
    connection._replica._transport.pause_reading()
    for text in ("early", "later"):
        a.emit(Output([text]))
        for _ in range(20):
            await asyncio.sleep(0)
    connection._replica._transport.resume_reading()
    gateway = Gateway(connection)
    await switched(gateway)
    a.emit(Done("succeeded"))
    async with asyncio.timeout(60):
        while not (gateway.events and isinstance(gateway.events[-1].event, Done)):
            await asyncio.sleep(0)
    outputs = [each.event for each in gateway.events if isinstance(each.event, Output)]
    assert [value for event in outputs for value in event.values] == [*texts, "early", "later"]
    gateway.close()


async def test_the_last_events_of_a_lost_worker_come_before_its_loss(
    folder: Path, direct: DirectWorker, workers: list[ScriptedWorker]
) -> None:
    gateway = await Gateway.connected(folder)
    await switched(gateway)
    gateway.connection.send(Commands(jobs=[Job("a", 1, {})]))
    await until_jobs(direct, 1)
    worker = gateway.connection._worker
    assert worker is not None
    worker._transport.pause_reading()  # the replica's socket is read first
    direct.stream("a").emit(Done("succeeded"))
    await asyncio.sleep(0)
    workers[0].die("was killed by signal 9 (SIGKILL)")
    for _ in range(20):
        await asyncio.sleep(0)
    assert (gateway.events, gateway.rest) == ([], [])
    worker._transport.resume_reading()
    await gateway.until(1)
    worker.close()  # as the end of the process does
    (end,) = await gateway.ended()
    assert gateway.events == [done("a", 1)]
    assert isinstance(end, StreamEnd)
    assert end.failure is not None
