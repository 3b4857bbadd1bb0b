"""Recovery of running predictions and their files by a new gateway."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.cluster.base import AdoptedModel
from appliance.domain.file import OutputFile
from appliance.domain.prediction import Done, Emitted, Job, Output, Prediction, Status
from appliance.gateway.engine import records
from appliance.runners.base import LoadSpec
from tests.support.engine_bench import Bench
from tests.support.local_cluster import LocalCluster


class Surviving(LocalCluster):
    """Replicas of an earlier gateway, with the predictions that they hold and what these have emitted."""

    def __init__(self, specs: list[LoadSpec], held: dict[str, frozenset[str]]) -> None:
        """``held`` has the ids of predictions by instance."""
        super().__init__()
        self.specs = specs
        self.held = held
        self.jobs: list[tuple[str, str, int]] = []  # instance, prediction and attempt
        self.discarded: list[str] = []

    async def adopt(self) -> list[AdoptedModel]:
        for spec in self.specs:
            await self.load(spec)
        return [AdoptedModel(spec, self.held.get(spec.model, frozenset())) for spec in self.specs]

    def submit(self, model: str, job: Job) -> None:
        self.jobs.append((model, job.id, job.attempt))
        if job.id not in self.held.get(model, ()):  # a replica ignores jobs that it has
            super().submit(model, job)

    def discard(self, model: str, id: str) -> None:
        self.discarded.append(id)
        super().discard(model, id)

    def emit(self, model: str, events: list[Emitted]) -> None:
        self._loaded[model].events.put_nowait(events)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = await Bench(tmp_path).start()
    yield bench
    await bench.stop()
    await bench.cluster.close()


async def restarted(bench: Bench, held: dict[str, frozenset[str]]) -> Surviving:
    """Replace the gateway; the loaded models hold these predictions."""
    specs = [each.spec for each in bench.cluster._loaded.values()]
    await bench.stop()
    await bench.cluster.close()
    bench.cluster = cluster = Surviving(specs, held)
    await bench.start()
    return cluster


def made(bench: Bench, record: Prediction, content: bytes = b"made", name: str = "a.txt") -> OutputFile:
    """Make an output file, as the worker process does."""
    path = Path(bench.files.outputs(record.id, 1)) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return OutputFile(
        id=f"id-of-{name}",
        name=name,
        content_type="text/plain",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        md5="",
        path=str(path),
    )


async def running(bench: Bench) -> Prediction:
    return await bench.until(await bench.submit(bench.files_model, delay=1000), Status.PROCESSING)


async def test_a_file_that_was_made_meanwhile_is_in_the_output(bench: Bench) -> None:
    record = await running(bench)
    file = made(bench, record)
    cluster = await restarted(bench, {"test/files": frozenset({record.id})})
    end = [Emitted(record.id, 1, 1, Output([file])), Emitted(record.id, 1, 2, Done("succeeded"))]
    cluster.emit("test/files", end)
    ended = await bench.ended(record)
    assert (ended.status, ended.attempt, ended.output) == (Status.SUCCEEDED, 1, [file])
    assert await bench.files.content(bench.folder / "files" / file.path) == b"made"


@pytest.mark.parametrize("damage", ["missing", "incomplete"])
async def test_a_file_that_was_lost_before_it_was_registered_fails_the_prediction(
    bench: Bench, damage: str
) -> None:
    record = await running(bench)
    file = made(bench, record)
    cluster = await restarted(bench, {"test/files": frozenset({record.id})})
    if damage == "missing":
        Path(file.path).unlink()
        reason = "the output file a.txt is missing on the disk"
    else:
        Path(file.path).write_bytes(b"ma")
        reason = "the output file a.txt has 2 bytes on the disk instead of 4"
    cluster.emit("test/files", [Emitted(record.id, 1, 1, Output([file]))])
    cluster.emit("test/files", [Emitted(record.id, 1, 2, Done("succeeded"))])
    ended = await bench.ended(record)
    assert (ended.status, ended.output) == (Status.FAILED, None)
    assert ended.error == f"Prediction interrupted; please retry (code: PA): {reason}"


async def test_a_file_that_was_lost_after_it_was_stored_fails_the_prediction(bench: Bench) -> None:
    record = await running(bench)
    file = made(bench, record)
    bench.cluster._loaded["test/files"].events.put_nowait([Emitted(record.id, 1, 1, Output([file]))])
    await bench.output_of(record)
    bench.engine._saver.save()
    await bench.stop()
    (bench.folder / "files" / file.path).unlink()
    specs = [each.spec for each in bench.cluster._loaded.values()]
    await bench.cluster.close()
    cluster = bench.cluster = Surviving(specs, {"test/files": frozenset({record.id})})
    await bench.start()
    cluster.emit("test/files", [Emitted(record.id, 1, 2, Done("succeeded"))])
    ended = await bench.until(record, Status.FAILED)
    assert ended.error is not None
    assert ended.error.endswith("the output file a.txt is missing on the disk")
    assert cluster.discarded == [record.id]  # so that its worker process stops


class TwoInstances(Bench):
    """The model test/echo has two instances."""

    async def let_nodes_join(self) -> None:
        self.engine.instances.scale("test/echo", 2, 2)


async def test_a_prediction_whose_start_was_not_stored_runs_only_where_it_was_sent(tmp_path: Path) -> None:
    """The scheduler would start it on the instance with a free slot, beside the run that goes on."""
    bench = TwoInstances(tmp_path)
    await bench.start()
    while len(bench.cluster._loaded) < 2:
        await asyncio.sleep(0)
    running = [await bench.submit(delay=1000) for _ in range(4)]
    for each in running:
        await bench.until(each, Status.PROCESSING)
    waiting = await bench.submit(text="computed")
    for each in running[:2]:
        await bench.store.finish(each.started(0.0, 0.0, "cpu").finished(Status.CANCELED, 1.0))
    second = frozenset({*(each.id for each in running[2:]), waiting.id})
    cluster = await restarted(bench, {"test/echo#2": second})
    end = [
        Emitted(waiting.id, 1, 1, Output(["computed"], append=False)),
        Emitted(waiting.id, 1, 2, Done("succeeded")),
    ]
    cluster.emit("test/echo#2", end)
    record = await bench.ended(waiting)
    assert (record.status, record.output, record.attempt) == (Status.SUCCEEDED, "computed", 1)
    assert cluster.jobs == [("test/echo#2", waiting.id, 1)]  # which the replica ignores
    await bench.stop()
    await bench.cluster.close()


class Repeating(Surviving):
    """A replica that sends events as soon as it is adopted."""

    def __init__(self, specs: list[LoadSpec], id: str, events: list[Emitted]) -> None:
        super().__init__(specs, {spec.model: frozenset({id}) for spec in specs})
        self.repeated = events

    async def adopt(self) -> list[AdoptedModel]:
        adopted = await super().adopt()
        for model in adopted:
            self.emit(model.spec.model, self.repeated)
        return adopted


async def test_events_of_an_attempt_that_an_earlier_gateway_queued_again_are_ignored(bench: Bench) -> None:
    record = await bench.until(await bench.submit(delay=1000), Status.PROCESSING)
    await records.requeue(bench.store, record.transition(Status.STARTING, started_at=None))
    specs = [each.spec for each in bench.cluster._loaded.values()]
    await bench.stop()
    await bench.cluster.close()
    cluster = bench.cluster = Repeating(specs, record.id, [Emitted(record.id, 1, 1, Done("succeeded"))])
    await bench.start()
    while cluster.jobs != [("test/echo", record.id, 2)]:
        await asyncio.sleep(0)
    end = [
        Emitted(record.id, 2, 1, Output(["again"], append=False)),
        Emitted(record.id, 2, 2, Done("succeeded")),
    ]
    cluster.emit("test/echo", end)
    ended = await bench.ended(record)
    assert (ended.status, ended.output, ended.attempt) == (Status.SUCCEEDED, "again", 2)


async def test_input_files_that_an_earlier_gateway_fetched_are_deleted(bench: Bench) -> None:
    record = await bench.submit(bench.files_model, file="data:,x", delay=1000)
    await bench.until(record, Status.PROCESSING)
    fetched = bench.folder / "run" / "inputs" / record.id
    while not fetched.exists():
        await asyncio.sleep(0.001)
    cluster = await restarted(bench, {"test/files": frozenset({record.id})})
    assert fetched.exists()  # the worker process may still read them
    cluster.emit("test/files", [Emitted(record.id, 1, 1, Done("succeeded"))])
    await bench.ended(record)
    while fetched.exists():
        await asyncio.sleep(0.001)
