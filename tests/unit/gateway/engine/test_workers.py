"""Reports about a worker process count only while it is the loaded one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import WorkerLost
from appliance.domain.prediction import Emitted, Status
from appliance.runners.base import LoadSpec
from appliance.scheduler import Residency
from appliance.scheduler.event_log import EventKind
from appliance.worker.memory_monitor import MemoryUsage
from tests.support.engine_bench import Bench
from tests.support.local_cluster import LocalCluster


class Halting(LocalCluster):
    """Its streams break when a worker process is ended, which takes until ``go``; it is deaf to cancels."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.ended: list[str] = []

    async def unload(self, model: str) -> None:
        if model in self._loaded:
            self.lose(model, "its stream broke")
            self.ended.append(model)
            await self.go.wait()

    def cancel(self, model: str, id: str) -> None:
        pass


class Interrupted(LocalCluster):
    """The first stream of each model ends at once: a late request of an earlier reader took its place."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def events(self, model: str) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
        self.asked.append(model)
        if self.asked.count(model) > 1:
            async for batch in super().events(model):
                yield batch


class Faulty(LocalCluster):
    """Fails with errors that nobody expects, each time once."""

    def __init__(self, *faults: str) -> None:
        super().__init__()
        self.faults = set(faults)

    def fail(self, fault: str) -> None:
        if fault in self.faults:
            self.faults.remove(fault)
            raise ValueError("nobody expects this")

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        self.fail("load")
        return await super().load(spec)

    async def events(self, model: str) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
        async for batch in super().events(model):
            self.fail("events")
            yield batch


async def within(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def started(folder: Path, cluster: LocalCluster) -> Bench:
    bench = Bench(folder)
    bench.cluster = cluster
    return await bench.start()


def whats(bench: Bench) -> list[EventKind]:
    return [each.kind for each in bench.scheduler.events() if each.model == "test/echo"]


async def test_a_worker_that_is_being_ended_cannot_be_lost(tmp_path: Path) -> None:
    """Its devices stay taken until it is gone, and nothing of it is heard once its model is loaded again."""
    bench = await started(tmp_path, cluster := Halting())
    await bench.engine.load(bench.echo)
    await bench.engine.unload(bench.echo)
    await within(lambda: cluster.ended)
    await asyncio.sleep(0.05)
    assert bench.engine.residency(bench.echo) is Residency.UNLOADING
    again = asyncio.create_task(bench.engine.load(bench.echo))
    await asyncio.sleep(0.05)
    assert bench.engine.residency(bench.echo) is Residency.UNLOADING
    cluster.go.set()
    await again
    assert bench.engine.residency(bench.echo) is Residency.READY
    await bench.engine.unload(bench.echo)
    await within(lambda: bench.engine.residency(bench.echo) is Residency.COLD)
    once = [EventKind.LOAD, EventKind.READY, EventKind.DRAIN, EventKind.UNLOAD, EventKind.UNLOADED]
    assert whats(bench) == once * 2
    await bench.stop()


async def test_a_worker_that_two_predictions_are_stuck_in_is_ended_once(tmp_path: Path) -> None:
    bench = await started(tmp_path, cluster := Halting())
    stuck = [await bench.submit(text="a b c", delay=60) for _ in range(2)]
    for prediction in stuck:
        await bench.until(prediction, Status.PROCESSING)
        await bench.engine.cancel(prediction.id, None)
    await within(lambda: cluster.ended)
    await asyncio.sleep(2 * bench.limits.cancel_grace)
    assert bench.engine.residency(bench.echo) is Residency.UNLOADING
    cluster.go.set()
    assert (await bench.ended(await bench.submit(text="next"))).output == "next"
    assert cluster.ended == ["test/echo"]
    assert whats(bench).count(EventKind.LOST) == 1
    await bench.stop()


async def test_a_stream_that_ends_while_the_model_is_loaded_is_asked_for_again(tmp_path: Path) -> None:
    bench = await started(tmp_path, cluster := Interrupted())
    assert (await bench.ended(await bench.submit(text="heard"))).output == "heard"
    assert cluster.asked == ["test/echo"] * 2
    await bench.stop()


async def test_nothing_is_handed_to_a_model_that_is_not_loaded() -> None:
    cluster = LocalCluster()
    cluster.cancel("test/echo", "a")
    with pytest.raises(WorkerLost, match="test/echo is not loaded"):
        await anext(aiter(cluster.events("test/echo")))


async def test_an_unexpected_error_in_a_load_fails_what_waits_for_it(tmp_path: Path) -> None:
    bench = await started(tmp_path, Faulty("load"))
    record = await bench.ended(await bench.submit())
    assert record.status is Status.FAILED
    assert record.error == "model test/echo could not be loaded: nobody expects this"
    assert bench.engine.residency(bench.echo) is Residency.COLD
    await bench.stop()


async def test_an_unexpected_error_in_a_stream_of_events_ends_what_runs(tmp_path: Path) -> None:
    bench = await started(tmp_path, Faulty("events"))
    record = await bench.ended(await bench.submit(text="again"))
    assert (record.status, record.output) == (Status.SUCCEEDED, "again")  # it ran a second time
    await bench.stop()
