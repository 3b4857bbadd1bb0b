"""A prediction may run before its start is stored, but nobody sees or loses anything because of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.cluster.base import AdoptedModel
from appliance.domain.errors import NotFound, StoreError
from appliance.domain.prediction import Done, Emitted, Job, Output, Prediction, Status
from appliance.gateway.catalogue.catalogue import Entry
from appliance.gateway.engine import records
from appliance.runners.base import LoadSpec
from tests.support.engine_bench import Bench, refusal
from tests.support.local_cluster import LocalCluster


class Recording(LocalCluster):
    """Remembers jobs and cancels."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[tuple[str, int]] = []
        self.canceled: list[str] = []
        self.done = asyncio.Event()  # a model has computed a result

    def submit(self, model: str, job: Job) -> None:
        self.jobs.append((job.id, job.attempt))
        super().submit(model, job)

    def cancel(self, model: str, id: str) -> None:
        self.canceled.append(id)
        super().cancel(model, id)

    async def _run(self, loaded: Any, job: Job) -> None:
        await super()._run(loaded, job)
        self.done.set()


class SlowStore:
    """Delays what a bench's store writes of starts until ``go`` is set."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        for name in ("create", "claim"):
            monkeypatch.setattr(bench.store, name, partial(self._delayed, getattr(bench.store, name)))

    def _delayed(
        self, write: Callable[[Prediction], asyncio.Future[None]], prediction: Prediction
    ) -> asyncio.Task[None]:
        async def stored() -> None:
            await self.go.wait()
            await write(prediction)

        return asyncio.get_running_loop().create_task(stored())


@pytest.fixture
async def bench(tmp_path: Path) -> Any:
    bench = Bench(tmp_path)
    bench.cluster = Recording()
    await bench.start()
    await bench.ended(await bench.submit(text="load the model"))
    bench.cluster.done.clear()
    bench.observed.clear()
    yield bench
    await bench.stop()


async def test_a_result_is_shown_only_after_the_start_and_the_end_are_stored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore(bench, monkeypatch)
    submitting = asyncio.ensure_future(bench.submit(text="computed"))
    assert isinstance(bench.cluster, Recording)
    await bench.cluster.done.wait()
    for _ in range(20):  # everything that could show the result runs
        await asyncio.sleep(0)
    assert not submitting.done()
    assert bench.observed == []
    id, _ = bench.cluster.jobs[-1]
    shown = await bench.engine.get(id, "me")
    assert (shown.status, shown.output, shown.started_at) == (Status.STARTING, None, None)
    assert await bench.store.get(id) is None
    store.go.set()
    record = await bench.ended(await submitting)
    assert (record.status, record.output, record.attempt) == (Status.SUCCEEDED, "computed", 1)
    assert [each.status for each in bench.observed] == [
        Status.PROCESSING,  # the start
        Status.PROCESSING,  # the output
        Status.SUCCEEDED,
    ]


async def test_a_prediction_that_cannot_be_created_leaves_its_slot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(bench.store, "create", lambda _: refusal(StoreError("the disk is broken")))
        for _ in range(5):  # more than can run at once
            with pytest.raises(StoreError):
                await bench.submit(delay=1000)
    assert isinstance(bench.cluster, Recording)
    assert len(bench.cluster.canceled) == len(set(bench.cluster.canceled)) > 0
    assert (await bench.ended(await bench.submit(text="next"))).output == "next"


async def test_a_start_that_the_store_refuses_for_a_while_is_not_computed_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RETRY_STORE", 0.001)
    claim = bench.store.claim
    refusals = iter(range(3))

    def refuse_thrice(prediction: Prediction) -> asyncio.Future[None]:
        return claim(prediction) if next(refusals, None) is None else refusal(StoreError("the disk is full"))

    monkeypatch.setattr(bench.store, "claim", refuse_thrice)
    for _ in range(2):
        await bench.submit(delay=0.01)
    waiting = await bench.submit(text="once")  # so its start is another write than its creation
    assert (await bench.ended(waiting)).output == "once"
    assert next(refusals, None) is None
    assert isinstance(bench.cluster, Recording)
    assert bench.cluster.jobs.count((waiting.id, 1)) == 1


async def test_a_run_that_is_canceled_before_its_start_is_stored_frees_its_slot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = [await bench.submit(delay=1000) for _ in range(2)]
    waiting = [await bench.submit(delay=1000) for _ in range(2)]
    store = SlowStore(bench, monkeypatch)
    assert isinstance(bench.cluster, Recording)
    for each in running:
        await bench.engine.cancel(each.id, "me")
    while not all((each.id, 1) in bench.cluster.jobs for each in waiting):
        await asyncio.sleep(0)
    canceling = [asyncio.ensure_future(bench.engine.cancel(each.id, "me")) for each in waiting]
    await asyncio.sleep(0)
    store.go.set()
    assert [(await each).status for each in canceling] == [Status.CANCELED] * 2
    assert (await bench.ended(await bench.submit(text="next"))).output == "next"


async def test_a_worker_that_dies_before_the_start_is_stored_costs_an_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore(bench, monkeypatch)
    submitting = asyncio.ensure_future(bench.submit(text="again", delay=0.01))
    await asyncio.sleep(0)
    bench.cluster.lose("test/echo", "it exited with code 3")
    await asyncio.sleep(0)
    store.go.set()
    record = await bench.ended(await submitting)
    assert (record.output, record.attempt) == ("again", 2)


async def test_a_prediction_that_may_call_the_api_runs_once_its_start_is_stored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, its token would be refused."""
    monkeypatch.setattr(Entry, "calls_others", property(lambda _: True))
    store = SlowStore(bench, monkeypatch)
    submitting = asyncio.ensure_future(bench.submit(text="later"))
    await asyncio.sleep(0.01)
    assert isinstance(bench.cluster, Recording)
    assert len(bench.cluster.jobs) == 1  # the one that has loaded the model
    store.go.set()
    prediction = await submitting
    assert (await bench.ended(prediction)).output == "later"
    assert bench.cluster.jobs[1:] == [(prediction.id, 1)]


class Surviving(Recording):
    """Replicas that an earlier gateway has sent predictions to."""

    def __init__(self, spec: LoadSpec, events: list[Emitted], held: frozenset[str]) -> None:
        super().__init__()
        self.spec = spec
        self.held = held
        self.left = events

    async def adopt(self) -> list[AdoptedModel]:
        await self.load(self.spec)
        self._loaded[self.spec.model].events.put_nowait(self.left)
        return [AdoptedModel(self.spec, self.held)]

    def submit(self, model: str, job: Job) -> None:
        if job.id not in self.held:  # as a replica ignores jobs that it has
            super().submit(model, job)


async def test_what_ran_when_the_gateway_died_before_it_stored_the_start_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    first = Recording()
    bench.cluster = first
    specs: list[LoadSpec] = []
    load = first.load

    async def remember(spec: LoadSpec) -> frozenset[int]:
        specs.append(spec)
        return await load(spec)

    monkeypatch.setattr(first, "load", remember)
    await bench.start()
    await bench.ended(await bench.submit(text="load the model"))
    running = [await bench.submit(delay=0.05) for _ in range(2)]
    prediction = await bench.submit(text="computed")
    with monkeypatch.context() as dying:
        SlowStore(bench, dying)
        for each in running:
            await bench.ended(each)
        while (prediction.id, 1) not in first.jobs:
            await asyncio.sleep(0)
        await bench.stop()
    events = [
        Emitted(prediction.id, 1, 1, Output(["computed"], append=False)),
        Emitted(prediction.id, 1, 2, Done("succeeded")),
    ]
    lost = "y" * 26  # its creation was not stored
    second = bench.cluster = Surviving(specs[0], events, frozenset({prediction.id, lost}))
    await bench.start()
    record = await bench.ended(prediction)
    assert (record.output, record.attempt) == ("computed", 1)
    assert second.jobs == []
    assert second.canceled == [lost]
    with pytest.raises(NotFound):
        await bench.engine.get(lost, "me")
    await bench.stop()
    await bench.cluster.close()
