"""The replica's promises to the gateway, with a worker process whose messages the test writes itself."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import LoadFailed, SleepFailed, WorkerLost
from appliance.domain.prediction import Done, Emitted, Job, Output
from appliance.worker.memory_monitor import MemoryUsage
from appliance.worker.protocol import (
    Cancel,
    Commands,
    RelayedEvent,
    RelayedEvents,
    Run,
    SleepWorker,
    WakeWorker,
    WorkerAsleep,
    WorkerAwake,
    WorkerFailed,
    WorkerReady,
    WorkerSleepFailed,
)
from appliance.worker.replica import Replica
from tests.support.replica_events import events_of
from tests.support.scripted_worker import PID, ScriptedWorker, done, output, spec


class Reader:
    """One subscriber, reading as fast as it can."""

    def __init__(self, replica: Replica) -> None:
        self.seen: list[Emitted] = []
        self.taken: list[MemoryUsage] = []
        self.measured: list[EngineMetrics] = []
        self.task = asyncio.create_task(self._read(replica))

    async def _read(self, replica: Replica) -> None:
        async for batch in events_of(replica):
            assert batch
            if isinstance(batch, MemoryUsage):
                self.taken.append(batch)
            elif isinstance(batch, EngineMetrics):
                self.measured.append(batch)
            else:
                self.seen += msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=list[Emitted])


async def settle() -> None:
    """Let everything run that is due."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_subscriber_gets_events_at_once(replica: Replica, workers: list[ScriptedWorker]) -> None:
    report = await replica.load(spec())
    assert (report.pid, report.forked) == (PID, True)
    reader = Reader(replica)
    replica.receive(Commands(jobs=[Job("a", 1, {})]))
    replica.receive(Commands(cancels=["a"]))
    assert workers[0].sent == [Run([Job("a", 1, {})]), Cancel(["a"])]
    workers[0].says(output("a", 1))
    await settle()
    assert reader.seen == [output("a", 1)]
    workers[0].says(done("a", 2))
    await settle()
    assert reader.seen == [output("a", 1), done("a", 2)]
    await replica.unload()
    await reader.task


async def test_event_bodies_are_relayed_byte_for_byte(
    replica: Replica, workers: list[ScriptedWorker]
) -> None:
    await replica.load(spec())
    replica.receive(Commands(jobs=[Job("a", 1, {})]))
    # Longer than needed, and with an unknown field: decoding and encoding it again would change it.
    body = b"\xde\x00\x03\xa4type\xd9\x06output\xa6values\x91\xcf" + bytes(7) + b"\x07\xa5extra\xc0"
    workers[0].receive(RelayedEvents([RelayedEvent("a", 1, 1, msgspec.Raw(body))]))
    workers[0].says(done("a", 2))
    for _ in range(2):  # the second subscriber is the gateway after a restart
        events = events_of(replica)
        batch = await anext(events)
        assert isinstance(batch, list)
        assert bytes(batch[0].event) == body
        sent = msgspec.msgpack.encode(batch)
        assert body in sent
        assert msgspec.msgpack.decode(sent, type=list[Emitted]) == [
            Emitted("a", 1, 1, Output([7])),
            done("a", 2),
        ]
        await events.aclose()  # type: ignore[attr-defined]  # an async generator
    replica.receive(Commands(acknowledged=["a"]))
    assert (await replica.stats()).held == []


async def test_the_next_subscriber_misses_nothing(replica: Replica, workers: list[ScriptedWorker]) -> None:
    await replica.load(spec())
    replica.receive(Commands(jobs=[Job("a", 1, {}), Job("b", 1, {})]))
    first = Reader(replica)
    await settle()
    workers[0].says(output("a", 1), output("b", 1), done("a", 2))
    await settle()
    second = Reader(replica)
    await first.task
    workers[0].says(output("b", 2))
    await settle()
    assert [e for e in second.seen if e.id == "a"] == [output("a", 1), done("a", 2)]
    assert [e for e in second.seen if e.id == "b"] == [output("b", 1), output("b", 2)]
    replica.receive(Commands(acknowledged=["a"]))
    third = Reader(replica)
    await second.task
    await settle()
    assert third.seen == [output("b", 1), output("b", 2)]
    stats = await replica.stats()
    assert (stats.running, stats.held, stats.pid, stats.spec) == (["b"], ["b"], PID, spec())


async def test_a_job_sent_again_runs_once(replica: Replica, workers: list[ScriptedWorker]) -> None:
    await replica.load(spec())
    for _ in range(2):
        replica.receive(Commands(jobs=[Job("a", 1, {})]))
    workers[0].says(done("a", 1))
    replica.receive(Commands(jobs=[Job("a", 1, {})]))
    assert workers[0].sent == [Run([Job("a", 1, {})])]


async def test_the_death_of_a_worker_is_reported_after_its_events(
    replica: Replica, workers: list[ScriptedWorker]
) -> None:
    await replica.load(spec())
    replica.receive(Commands(jobs=[Job("a", 1, {}), Job("b", 1, {})]))
    workers[0].says(output("b", 1), done("a", 1))
    workers[0].die("exited with code 3")
    await settle()
    for _ in range(2):  # nobody was subscribed; and whoever asks again hears the same
        reader = Reader(replica)
        with pytest.raises(WorkerLost, match=r"of test/echo exited with code 3\n.*\nlast words$"):
            await reader.task
        assert reader.seen == [done("a", 1), output("b", 1)]
    replica.receive(Commands(jobs=[Job("c", 1, {})]))  # ignored, because nothing can run it
    replica.receive(Commands(cancels=["b"], acknowledged=["a"]))
    stats = await replica.stats()
    assert (stats.spec, stats.pid, stats.held) == (spec(), None, ["b"])


async def test_a_worker_dies_while_a_subscriber_reads(
    replica: Replica, workers: list[ScriptedWorker]
) -> None:
    await replica.load(spec())
    replica.receive(Commands(jobs=[Job("a", 1, {})]))
    reader = Reader(replica)
    await settle()
    workers[0].says(output("a", 1))
    workers[0].die("was killed by signal 9 (SIGKILL)")
    with pytest.raises(WorkerLost, match="killed by signal 9"):
        await reader.task
    assert reader.seen == [output("a", 1)]


async def test_the_model_can_be_loaded_again_after_a_death(
    replica: Replica, workers: list[ScriptedWorker]
) -> None:
    await replica.load(spec())
    replica.receive(Commands(jobs=[Job("a", 1, {}), Job("b", 1, {})]))
    first = Reader(replica)
    workers[0].says(done("a", 1), output("b", 1))
    workers[0].die("exited with code 3")
    with pytest.raises(WorkerLost, match="exited with code 3"):
        await first.task
    assert first.seen == [done("a", 1), output("b", 1)]
    await replica.load(spec())
    replica.receive(Commands(jobs=[Job("b", 2, {})]))
    assert workers[1].sent == [Run([Job("b", 2, {})])]
    reader = Reader(replica)
    workers[1].says(Emitted("b", 2, 1, Done("succeeded")))
    await settle()
    assert reader.seen == [Emitted("b", 2, 1, Done("succeeded"))]


async def test_loading_what_is_loaded_does_nothing(replica: Replica, workers: list[ScriptedWorker]) -> None:
    first = await replica.load(spec())
    assert await replica.load(spec()) == first
    assert len(workers) == 1


async def test_another_spec_takes_the_place_of_the_first(
    replica: Replica, workers: list[ScriptedWorker]
) -> None:
    await replica.load(spec("a"))
    reader = Reader(replica)
    await settle()
    await replica.load(spec("b"))
    await reader.task
    assert workers[0].end.done()
    assert not workers[1].end.done()
    assert (await replica.stats()).spec == spec("b")


async def test_unloading_forgets_all_predictions(replica: Replica, workers: list[ScriptedWorker]) -> None:
    await replica.load(spec())
    replica.receive(Commands(jobs=[Job("a", 1, {}), Job("b", 1, {})]))
    workers[0].says(done("a", 1), output("b", 1))
    await replica.unload()
    workers[0].says(done("b", 2))
    reader = Reader(replica)
    with pytest.raises(WorkerLost, match="no model is loaded"):
        await reader.task
    assert reader.seen == []
    replica.receive(Commands(jobs=[Job("c", 1, {})]))
    stats = await replica.stats()
    assert (stats.spec, stats.held) == (None, [])


async def test_a_model_that_cannot_be_loaded(
    replica: Replica, workers: list[ScriptedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedWorker, "answers", (WorkerFailed("no weights at /nowhere"),))
    with pytest.raises(LoadFailed, match=r"^no weights at /nowhere\n.*\nlast words$"):
        await replica.load(spec())
    assert workers[0].end.done()
    assert (await replica.stats()).spec is None


async def test_a_worker_that_dies_while_it_loads(
    replica: Replica, workers: list[ScriptedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedWorker, "answers", ())
    loading = asyncio.create_task(replica.load(spec()))
    await settle()
    assert (await replica.stats()).spec is None
    workers[0].die("exited with code 1")
    with pytest.raises(WorkerLost, match="exited with code 1 while it loaded"):
        await loading


async def test_an_unload_stops_a_load(
    replica: Replica, workers: list[ScriptedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedWorker, "answers", ())
    loading = [asyncio.create_task(replica.load(spec())) for _ in range(2)]
    await settle()
    await replica.unload()
    for task in loading:
        with pytest.raises(LoadFailed, match="unloaded during its load"):
            await task
    assert len(workers) == 1
    assert workers[0].end.done()


async def test_a_cancelled_call_does_not_stop_the_load(
    replica: Replica, workers: list[ScriptedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedWorker, "answers", ())
    gone = asyncio.create_task(replica.load(spec()))
    await settle()
    gone.cancel()
    again = asyncio.create_task(replica.load(spec()))
    await settle()
    workers[0].receive(WorkerReady())
    assert (await again).pid == PID
    assert len(workers) == 1


async def test_the_next_gateway_learns_the_sleep_state(
    replica: Replica, workers: list[ScriptedWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedWorker, "answers", (WorkerReady([1, 2]),))
    assert (await replica.load(spec())).levels == [1, 2]
    sleeping = asyncio.create_task(replica.sleep(2))
    await settle()
    assert (await replica.stats()).changing_sleep_state
    workers[0].receive(WorkerAsleep(7))
    assert await sleeping == 7
    stats = await replica.stats()
    assert (stats.levels, stats.level, stats.changing_sleep_state) == ([1, 2], 2, False)
    waking = asyncio.create_task(replica.wake())
    await settle()
    workers[0].receive(WorkerAwake())
    await waking
    assert (await replica.stats()).level is None
    assert workers[0].sent == [SleepWorker(2), WakeWorker()]


async def test_the_reason_is_reported_if_a_worker_cannot_sleep(
    replica: Replica, workers: list[ScriptedWorker]
) -> None:
    await replica.load(spec())
    sleeping = asyncio.create_task(replica.sleep(1))
    await settle()
    workers[0].receive(WorkerSleepFailed("no room"))
    with pytest.raises(SleepFailed, match=r"no room\nThe last lines of its log:\nlast words"):
        await sleeping


async def test_a_worker_that_dies_while_it_wakes_is_lost(
    replica: Replica, workers: list[ScriptedWorker]
) -> None:
    await replica.load(spec())
    sleeping = asyncio.create_task(replica.sleep(1))
    await settle()
    workers[0].receive(WorkerAsleep(None))
    await sleeping
    waking = asyncio.create_task(replica.wake())
    await settle()
    workers[0].die("was killed by signal 9 (SIGKILL)")
    with pytest.raises(WorkerLost, match="signal 9"):
        await waking
    with pytest.raises(WorkerLost):
        await replica.wake()


async def test_the_metrics_of_an_engine_go_to_the_gateway_that_is_connected(
    replica: Replica, workers: list[ScriptedWorker]
) -> None:
    await replica.load(spec())
    workers[0].receive(EngineMetrics(generation_tokens=1))  # no gateway is connected: dropped
    reader = Reader(replica)
    await settle()
    workers[0].receive(EngineMetrics(generation_tokens=2, running=1))
    await settle()
    assert reader.measured == [EngineMetrics(generation_tokens=2, running=1)]
    await replica.unload()
    workers[0].receive(EngineMetrics(generation_tokens=4))
    await reader.task
    assert len(reader.measured) == 1
