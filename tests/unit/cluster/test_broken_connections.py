"""A model on another node whose connections break: no job and no cancel is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from ray import serve

from appliance.cluster.ray import RayCluster
from appliance.domain.errors import WorkerLost
from appliance.domain.prediction import Emitted, Job
from appliance.worker import data_socket
from appliance.worker.process.gateway_connection import listen
from appliance.worker.protocol import Cancel, Run
from appliance.worker.replica import Replica
from tests.support.node_connection import LocalNode
from tests.support.scripted_worker import ScriptedWorker, done, output
from tests.support.scripted_worker import spec as loaded_spec
from tests.unit.cluster.test_nodes import FakeServe, cluster_of, spec
from tests.unit.worker.conftest import replica, workers  # noqa: F401  # fixtures
from tests.unit.worker.test_data_socket import DirectWorker

REPLICA, WORKER = "runner-box-0.sock", "runner-box-0-worker.sock"


class Bench:
    """A loaded model on a node, with a real replica and the sockets of a worker process."""

    def __init__(self, cluster: RayCluster, node: LocalNode, direct: DirectWorker) -> None:
        self.cluster = cluster
        self.node = node
        self.direct = direct
        self.events: list[Emitted] = []
        self.following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:  # as the engine does: the events of a loaded model may end and continue
            async for message in self.cluster.events("a/b"):
                if isinstance(message, list):
                    self.events += message

    async def until_direct(self) -> None:
        """Wait until jobs go to the worker process without the replica."""
        link = self.cluster._links["a/b"]
        await until(lambda: link.connection is not None and link.connection._direct)

    async def break_worker_connection(self) -> None:
        """Close the connection to the worker process; wait until it is established again."""
        broken = self.node.sockets[WORKER]
        broken.abort()
        await until(lambda: self.node.sockets[WORKER] is not broken)
        await self.until_direct()

    def stop_traffic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Drop all that is sent to the worker process over its present connection."""
        link = self.cluster._links["a/b"]
        assert link.connection is not None
        monkeypatch.setattr(link.connection._worker, "send", lambda _: None)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
async def bench(
    tmp_path: Path,
    replica: Replica,  # noqa: F811
    workers: list[ScriptedWorker],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    fake = FakeServe()
    monkeypatch.setattr(serve, "run_many", fake.run_many)
    monkeypatch.setattr(serve, "delete", fake.delete)
    cluster, node = cluster_of(tmp_path)
    await replica.load(loaded_spec())
    server = await data_socket.listen(replica, node.folders.run_dir / REPLICA)
    direct = DirectWorker(workers[0])
    path = node.folders.run_dir / WORKER
    worker_server = await listen(path, direct.sender, direct.jobs.extend, direct.cancels.extend)
    assert worker_server is not None
    await cluster.load(spec("box"))
    bench = Bench(cluster, node, direct)
    await bench.until_direct()
    yield bench
    bench.following.cancel()
    await asyncio.gather(bench.following, return_exceptions=True)
    await cluster.close()
    server.close()
    worker_server.close()


async def test_a_job_that_a_broken_connection_lost_is_sent_again(
    bench: Bench,
    replica: Replica,  # noqa: F811
    workers: list[ScriptedWorker],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench.cluster.submit("a/b", Job("arrived", 1, {}))
    await until(lambda: replica._event_buffer.ids == ["arrived"])
    bench.stop_traffic(monkeypatch)
    bench.cluster.submit("a/b", Job("lost", 1, {}))
    bench.cluster.cancel("a/b", "arrived")
    await asyncio.sleep(0)
    await bench.break_worker_connection()
    await until(lambda: len(workers[0].sent) == 2)
    run, cancel = workers[0].sent
    assert isinstance(run, Run)
    assert [job.id for job in run.jobs] == ["lost"]  # the replica knows that the other one has arrived
    assert cancel == Cancel(["arrived"])


async def test_finished_predictions_are_not_sent_again(
    bench: Bench,
    workers: list[ScriptedWorker],  # noqa: F811
) -> None:
    bench.cluster.submit("a/b", Job("a", 1, {}))
    await until(lambda: bench.direct.jobs)
    bench.direct.stream("a").emit(done("a", 1).event)
    await until(lambda: bench.events)
    bench.cluster.acknowledge("a/b", "a")
    await bench.break_worker_connection()
    bench.cluster.submit("a/b", Job("b", 1, {}))
    await until(lambda: len(bench.direct.jobs) == 2)
    assert [job.id for job in bench.direct.jobs] == ["a", "b"]
    assert workers[0].sent == []


async def test_events_are_delivered_once(bench: Bench) -> None:
    bench.cluster.submit("a/b", Job("a", 1, {}))
    await until(lambda: bench.direct.jobs)
    stream = bench.direct.stream("a")
    stream.emit(output("a", 1, "one").event)
    await until(lambda: bench.events)
    await bench.break_worker_connection()
    stream.emit(done("a", 2).event)
    await until(lambda: len(bench.events) >= 2)
    assert [emitted.n for emitted in bench.events] == [1, 2]


async def test_the_loss_of_a_worker_process_is_reported_while_input_files_are_sent(
    bench: Bench,
    workers: list[ScriptedWorker],  # noqa: F811
    tmp_path: Path,
) -> None:
    bench.node.held["slow.bin"] = asyncio.Event()
    file = tmp_path / "head" / "run" / "inputs" / "a" / "file" / "slow.bin"
    file.parent.mkdir(parents=True)
    file.touch()
    bench.cluster.submit("a/b", Job("a", 1, {"file": str(file)}))
    workers[0].end.set_result("was killed")
    with pytest.raises(WorkerLost, match="was killed"):
        await asyncio.wait_for(bench.following, 60)
