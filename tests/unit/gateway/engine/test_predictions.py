"""A prediction may run before its start is stored, but nobody sees or loses anything because of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.cluster.base import AdoptedModel
from appliance.domain.errors import NotFound, StoreError
from appliance.domain.prediction import Done, Emitted, Job, Output, Prediction, Status
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.gateway.engine import predictions, records
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
    running = [await bench.submit(delay=1000) for _ in range(2)]
    waiting = await bench.submit(text="once")  # so its start is another write than its creation
    for each in running:
        await bench.engine.cancel(each.id, "me")
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


async def test_repeated_events_of_an_interrupted_attempt_are_ignored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, events = LocalCluster._run, LocalCluster.events
    repeated: list[Emitted] = []

    async def run_the_second(cluster: LocalCluster, loaded: Any, job: Job) -> None:
        if job.attempt == 1:
            await asyncio.Event().wait()
        await run(cluster, loaded, job)

    async def repeat(cluster: LocalCluster, model: str) -> AsyncIterator[Any]:
        if repeated:
            yield repeated
        async for batch in events(cluster, model):
            yield batch

    monkeypatch.setattr(LocalCluster, "_run", run_the_second)
    monkeypatch.setattr(LocalCluster, "events", repeat)
    prediction = await bench.submit(text="again")
    await bench.until(prediction, Status.PROCESSING)
    repeated += [
        Emitted(prediction.id, 1, 1, Output(["old"])),
        Emitted(prediction.id, 1, 2, Done("succeeded")),
    ]
    bench.cluster.lose("test/echo", "its connection broke")
    record = await bench.ended(prediction)
    assert (record.status, record.output, record.attempt) == (Status.SUCCEEDED, "again", 2)


async def test_a_prediction_that_may_call_the_api_runs_once_its_start_is_stored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, its token would be refused."""
    monkeypatch.setattr(ServedVersion, "calls_others", property(lambda _: True))
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
    running = [await bench.submit(delay=1000) for _ in range(2)]
    prediction = await bench.submit(text="computed")
    with monkeypatch.context() as dying:
        SlowStore(bench, dying)
        for each in running:
            await bench.engine.cancel(each.id, "me")
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


class Counting:
    """Counts the transactions of a bench's store."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commits = 0
        writer = bench.store._writer
        assert writer is not None
        commit = writer._commit_executed

        def count(*args: Any) -> Any:
            self.commits += 1
            return commit(*args)

        monkeypatch.setattr(writer, "_commit_executed", count)


async def waited(bench: Bench, **input: Any) -> Prediction:
    """Submit a prediction and wait for its end, as ``Prefer: wait`` does."""
    prediction = await bench.engine.submit(
        bench.echo, input, owner="me", parent=None, token=None, trace=None, awaits_end=True
    )
    record = await bench.engine.wait(prediction.id, 10)
    assert record is not None
    return record


async def test_a_short_prediction_whose_caller_waits_costs_one_commit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "_WRITE_DELAY", 1000)
    counting = Counting(bench, monkeypatch)
    record = await waited(bench, text="short")
    assert (record.status, record.output, record.attempt) == (Status.SUCCEEDED, "short", 1)
    assert record.started_at is not None
    assert await bench.store.get(record.id) == record
    assert counting.commits == 1
    assert [each.status for each in bench.observed] == [Status.PROCESSING, Status.SUCCEEDED]
    failed = await waited(bench, fail="out of ideas")
    assert (failed.status, failed.error) == (Status.FAILED, "out of ideas")
    assert await bench.store.get(failed.id) == failed


async def test_a_longer_prediction_is_stored_before_its_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "_WRITE_DELAY", 0.001)
    waiting = asyncio.ensure_future(waited(bench, delay=1000))
    while not (stored := await bench.engine.list("me", status=Status.PROCESSING)):
        await asyncio.sleep(0.001)
    record = await bench.engine.cancel(stored[0].id, "me")
    assert record.status is Status.CANCELED
    assert await waiting == record == await bench.store.get(record.id)


@pytest.mark.parametrize("delay", [0.0, 1000.0])
async def test_a_caller_that_waits_is_told_that_its_prediction_cannot_be_stored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    monkeypatch.setattr(predictions, "_WRITE_DELAY", 0.01 if delay else 1000)
    with monkeypatch.context() as broken:
        broken.setattr(bench.store, "create", lambda _: refusal(StoreError("the disk is broken")))
        for _ in range(5):  # more than can run at once
            with pytest.raises(StoreError, match="the disk is broken"):
                await waited(bench, delay=delay)
    assert (await waited(bench, text="next")).output == "next"


@pytest.mark.parametrize("write_delay", [0.0, 1000.0])
async def test_an_unfinished_prediction_is_answered_only_once_it_is_stored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, write_delay: float
) -> None:
    monkeypatch.setattr(predictions, "_WRITE_DELAY", write_delay)
    store = SlowStore(bench, monkeypatch)
    prediction = await bench.engine.submit(
        bench.echo, {"delay": 1000}, owner="me", parent=None, token=None, trace=None, awaits_end=True
    )
    waiting = asyncio.ensure_future(bench.engine.wait(prediction.id, 0.01))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    store.go.set()
    assert await waiting is not None
    stored = await bench.store.get(prediction.id)
    assert stored is not None
    await bench.engine.cancel(prediction.id, "me")


async def test_a_worker_that_dies_before_the_first_write_costs_an_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "_WRITE_DELAY", 0.02)
    waiting = asyncio.ensure_future(waited(bench, text="again", delay=0.05))
    await asyncio.sleep(0.001)
    bench.cluster.lose("test/echo", "it exited with code 3")
    record = await waiting
    assert (record.output, record.attempt) == ("again", 2)
