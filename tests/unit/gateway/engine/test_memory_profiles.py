"""Memory as the engine sees it: the use of worker processes is kept, and those that ran out get more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.domain.errors import OutOfMemory
from appliance.domain.prediction import Prediction, Status
from appliance.gateway.engine.device_memory import DeviceMemory
from appliance.gateway.engine.memory_profiles import MemoryProfiles
from appliance.scheduler import Capacity, Demand, Load, Origin, Residency, Scheduler, Unload
from tests.support.appliance_process import until
from tests.support.engine_bench import MIB, Bench, entry
from tests.support.local_cluster import LocalCluster


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.capacity = 100 * MIB
    bench.estimated = {"test/echo": 20 * MIB, "test/files": 70 * MIB}
    await bench.start()
    yield bench
    await bench.stop()


async def running(bench: Bench, model: str = "test/echo") -> Prediction:
    """A prediction that runs and shows nothing."""
    prediction = await bench.submit(None if model == "test/echo" else bench.stream, delay=1000)
    return await bench.until(prediction, Status.PROCESSING)


async def runs_again(bench: Bench, prediction: Prediction) -> None:
    deadline = time.monotonic() + 60
    while (record := await bench.engine.get(prediction.id, "me")).attempt != 2:
        assert time.monotonic() < deadline, record
        await asyncio.sleep(0.005)


def footprint(bench: Bench) -> dict[str, Any]:
    found = bench.engine.residency_report().models
    model = next(model for model in found if model.name == "test/echo")
    return dict(msgspec.json.decode(msgspec.json.encode(model.memory)))


async def test_what_a_model_took_is_known_at_the_next_start(bench: Bench) -> None:
    assert footprint(bench)["from"] == "estimated"
    await bench.ended(await bench.submit())
    bench.cluster.take("test/echo", 40 * MIB)
    await until(lambda: bench.scheduler.demand("test/echo").origin is Origin.MEASURED)
    await bench.restart()
    assert footprint(bench) == {
        "bytes": 46 * MIB,
        "share": None,
        "from": "measured",
        "estimate": 20 * MIB,
        "peak": 40 * MIB,
        "exceeds": False,
        "out_of_memory": 0,
        "fits": True,
        "fits_on": ["cpu"],
        "problem": None,
    }


async def test_other_options_are_measured_anew(bench: Bench) -> None:
    await bench.ended(await bench.submit())
    bench.cluster.take("test/echo", 40 * MIB)
    await until(lambda: bench.scheduler.demand("test/echo").origin is Origin.MEASURED)
    bench.echo = entry(concurrency=3)
    await bench.restart()
    assert footprint(bench)["from"] == "estimated"


async def test_what_ran_out_of_memory_runs_once_more_with_more(bench: Bench) -> None:
    await bench.ended(await bench.submit(bench.files_model))  # holds what it would need
    prediction = await running(bench)
    bench.cluster.lose("test/echo", OutOfMemory("it took too much", 40 * MIB))
    await runs_again(bench, prediction)
    assert bench.scheduler.reserved("cpu")["test/echo"] == 46 * MIB
    assert footprint(bench)["out_of_memory"] == 1
    bench.cluster.lose("test/echo", OutOfMemory("it took too much", 200 * MIB))
    record = await bench.ended(prediction)
    assert record.status is Status.FAILED
    assert record.error == (
        "Out of memory: it took too much; this machine has no more memory for it: "
        "lower its option concurrency, or choose a smaller model"
    )
    await bench.restart()
    assert footprint(bench)["bytes"] == 100 * MIB


async def test_one_that_takes_more_than_is_declared_fails_at_once_and_says_what_to_do(bench: Bench) -> None:
    prediction = await running(bench, "test/stream")
    bench.cluster.lose("test/stream", OutOfMemory("it took too much", 40 * MIB))
    record = await bench.ended(prediction)
    assert (record.status, record.attempt) == (Status.FAILED, 1)
    assert record.error == (
        "Out of memory: it took too much; raise memory of test/stream in models.yaml, "
        "or lower its option concurrency"
    )
    await bench.ended(await bench.submit(bench.stream))


async def test_whose_fault_it_was_is_not_known_where_several_ran(bench: Bench) -> None:
    both = [await running(bench, "test/stream") for _ in range(2)]
    bench.cluster.lose("test/stream", OutOfMemory("it took too much", 40 * MIB))

    async def again(prediction: Prediction) -> None:
        await runs_again(bench, prediction)
        await bench.engine.cancel(prediction.id, "me")

    await asyncio.gather(*map(again, both))  # one after the other, in any order


async def test_a_worker_is_sent_how_much_it_may_take(bench: Bench) -> None:
    """An estimate may be wrong: it may take what nobody holds, until somebody does."""
    await bench.ended(await bench.submit())
    await bench.ended(await bench.submit(bench.stream))
    await until(lambda: bench.cluster.limits == {"test/echo": 99 * MIB})


async def test_a_worker_of_an_earlier_gateway_is_sent_it_too(bench: Bench) -> None:
    cluster = LocalCluster()
    demand = Demand(model="test/echo", concurrency=1, memory=2 * MIB)
    scheduler = Scheduler([Capacity("cpu", 9 * MIB)], [demand])
    profiles = MemoryProfiles(bench.catalogue, scheduler, cluster, bench.store, "cpu")
    scheduler.adopted("test/echo", ("cpu",), 3 * MIB, 0.0, levels=(), level=None)
    profiles.adopted("test/echo")
    profiles.send_limits()
    profiles.send_limits()
    assert cluster.limits == {"test/echo": 3 * MIB}


class Driver:
    """A GPU whose memory comes back a while after its processes are gone."""

    def __init__(self, *used: int) -> None:
        self.used = list(used)

    def __call__(self) -> dict[str, int]:
        return {"gpu0": (self.used.pop(0) if len(self.used) > 1 else self.used[0]) * MIB}


UNLOAD = Unload("a/a", "asked for", ("gpu0",), peak=50 * MIB)


async def measured(_: Iterable[str]) -> None:
    """Measure nothing: there are no other nodes."""


def placed(used: Driver) -> tuple[Scheduler, DeviceMemory]:
    scheduler = Scheduler(
        [Capacity("gpu0", 100 * MIB)],
        [Demand(model=name, memory=60 * MIB, concurrency=1) for name in ("a/a", "b/b")],
    )
    scheduler.request_load("a/a")
    scheduler.decide(0.0)
    scheduler.loaded("a/a", 0.0, ())
    scheduler.footprints.record_peak("a/a", UNLOAD.peak, 0.0)
    return scheduler, DeviceMemory(scheduler, used, {"gpu0": "cuda"}, measured)


async def test_memory_is_waited_for_until_the_driver_has_it_back() -> None:
    driver = Driver(52, 52, 52, 30, 3)
    scheduler, device_memory = placed(driver)
    before = device_memory.usage_of_gpus(UNLOAD.devices)
    await device_memory.wait_until_freed(UNLOAD, before)
    assert driver.used == [3]
    scheduler.unloaded("a/a", 1.0)
    device_memory.refresh()
    assert scheduler.footprints.foreign_memory("gpu0") == 3 * MIB


async def test_what_does_not_come_back_is_foreign() -> None:
    """Another program has taken some of it meanwhile: that it changes no more is enough."""
    driver = Driver(52, 45)
    scheduler, device_memory = placed(driver)
    await device_memory.wait_until_freed(UNLOAD, device_memory.usage_of_gpus(UNLOAD.devices))
    scheduler.unloaded("a/a", 1.0)
    device_memory.refresh()
    assert scheduler.footprints.foreign_memory("gpu0") == 45 * MIB
    scheduler.queued("p", "b/b", 2.0)
    assert scheduler.decide(2.0) == []
    driver.used = [20]
    device_memory.update(time.monotonic() + 1.0)
    assert Load("b/b", ("gpu0",), 60 * MIB, may_sleep=False) in scheduler.decide(3.0)
    assert scheduler.residency("b/b") is Residency.LOADING
