"""The engine while worker processes die, hang, refuse or are late, under many requests at once.

What is asserted is what is true outside of the engine: of worker processes that run, and of what was stored.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from appliance.domain.engine_metrics import EngineMetrics
from appliance.domain.errors import LoadFailed, OutOfMemory, SleepFailed, StoreError, WorkerLost
from appliance.domain.prediction import Emitted, Prediction
from appliance.gateway.engine import records
from appliance.runners.base import LoadSpec
from appliance.scheduler import Residency, SleepFootprint, policy
from appliance.store import Store
from appliance.worker.memory_monitor import MemoryUsage
from tests.support.engine_bench import MIB, Bench, entry
from tests.support.local_cluster import LocalCluster

NAMES = ["test/a", "test/b", "test/c", "test/d"]
RESIDUE = MIB // 8
ROOM = 2 * MIB + 2 * RESIDUE  # for two of the four, while the others sleep
STEPS = 150


class Chaos(LocalCluster):
    """Hosts whose every turn takes a while, and may go wrong; knows what they hold of the device."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.held: dict[str, int] = {}
        self.calm = False

    def happens(self, probability: float) -> bool:
        return not self.calm and self.random.random() < probability

    async def pause(self) -> None:
        await asyncio.sleep(self.random.choice((0.0, 0.0, 0.001, 0.004)))

    def hold(self, model: str, memory: int) -> None:
        self.held[model] = memory
        assert sum(self.held.values()) <= ROOM, f"over capacity: {self.held}"

    async def load(self, spec: LoadSpec) -> frozenset[int]:
        assert spec.model not in self.held, f"{spec.model} has a worker process already"
        self.hold(spec.model, MIB)
        try:
            await self.pause()
            if self.happens(0.1):
                raise LoadFailed("no luck")
            if self.happens(0.1):
                raise WorkerLost("died while it loaded")
            return await super().load(spec)
        except BaseException:
            del self.held[spec.model]
            raise

    async def unload(self, model: str) -> None:
        loaded = self._loaded.get(model)
        if loaded is not None and self.happens(0.5):
            loaded.events.put_nowait(WorkerLost("its stream broke"))
        await self.pause()
        await super().unload(model)
        await self.pause()
        self.held.pop(model, None)

    async def sleep(self, model: str, level: int) -> int | None:
        await self.pause()
        if self.happens(0.1):
            raise SleepFailed("restless")
        left = await super().sleep(model, level)
        if model in self._loaded:
            self.held[model] = RESIDUE
        return left

    async def wake(self, model: str) -> None:
        if model in self._loaded:
            self.hold(model, MIB)
        await self.pause()
        if self.happens(0.1):
            raise SleepFailed("fast asleep")
        await super().wake(model)

    async def events(self, model: str) -> AsyncIterator[list[Emitted] | EngineMetrics | MemoryUsage]:
        async for batch in super().events(model):
            yield batch
            if self.happens(0.02):
                return

    def cancel(self, model: str, id: str) -> None:
        if not self.happens(0.2):
            super().cancel(model, id)

    def strike(self) -> None:
        """One of the worker processes dies, or is ended because it takes too much."""
        if self._loaded:
            model = self.random.choice(sorted(self._loaded))
            self.lose(model, OutOfMemory("too much", 2 * MIB) if self.happens(0.3) else WorkerLost("struck"))
            self.held.pop(model, None)


def refuse_some_writes(store: Store, cluster: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that is full at times."""

    def refusing(write: Callable[[Prediction], Awaitable[None]]) -> Callable[[Prediction], Awaitable[None]]:
        async def refused(record: Prediction) -> None:
            if cluster.happens(0.05):
                raise StoreError("the disk is full")
            await write(record)

        return refused

    for name in ("claim", "requeue", "finish"):
        monkeypatch.setattr(store, name, refusing(getattr(store, name)))


async def act(bench: Bench, cluster: Chaos, made: list[Prediction]) -> None:
    """Do one thing that an operator, a client or a machine may do."""
    chosen = cluster.random.choice(bench.more)
    match cluster.random.choices(("run", "cancel", "load", "unload", "pin", "strike"), (60, 10, 6, 12, 6, 6))[
        0
    ]:
        case "run":
            delay = cluster.random.choice((0.0, 0.0, 0.002, 0.01))
            made.append(await bench.submit(chosen, text="word", delay=delay))
        case "cancel" if made:
            await bench.engine.cancel(cluster.random.choice(made[-8:]).id, None)
        case "load":
            bench.scheduler.request_load(chosen.runs_on)
        case "unload":
            await bench.engine.unload(chosen)
        case "pin" if sum(bench.scheduler.pinned(each.runs_on) for each in bench.more) == 0:
            bench.engine.pin(chosen, pinned=True)
        case "pin":
            for each in bench.more:
                bench.engine.pin(each, pinned=False)
        case "strike":
            cluster.strike()
    await asyncio.sleep(cluster.random.choice((0.0, 0.0, 0.001, 0.003)))


@pytest.mark.parametrize("seed", range(6))
async def test_everything_ends_and_nothing_is_overbooked(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(policy, "MIN_RESIDENCY", 0.005)
    monkeypatch.setattr(policy, "PATIENCE", 0.02)
    monkeypatch.setattr(policy, "BACKOFF", (0.005, 0.02))
    monkeypatch.setattr(records, "RETRY_STORE", 0.005)
    caplog.set_level(logging.ERROR)
    bench = Bench(tmp_path, cancel_grace=0.02)
    bench.more = [entry(name, concurrency=2, weights=65536) for name in NAMES]
    bench.capacity, bench.main, bench.asleep = ROOM, 2 * MIB, SleepFootprint(RESIDUE, MIB)
    bench.cluster = cluster = Chaos(seed)
    await bench.start()
    refuse_some_writes(bench.store, cluster, monkeypatch)
    made: list[Prediction] = []
    for _ in range(STEPS):
        await act(bench, cluster, made)
    cluster.calm = True
    for each in bench.more:
        bench.engine.pin(each, pinned=False)
    for prediction in made:
        await bench.ended(prediction)
    steady = {Residency.COLD, Residency.READY, Residency.ASLEEP}
    deadline = time.monotonic() + 60
    while any(bench.engine.residency(each) not in steady for each in bench.more):
        assert time.monotonic() < deadline, bench.engine.status()
        await asyncio.sleep(0.005)
    there = {each.name for each in bench.more if bench.engine.residency(each) is not Residency.COLD}
    assert there == set(cluster._loaded) == set(cluster.held)
    assert bench.scheduler.reserved("cpu").keys() == there
    assert "of the engine failed" not in caplog.text
    await bench.stop()
    await cluster.close()
