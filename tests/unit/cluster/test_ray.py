"""The gateway's end of a replica, without Ray."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from appliance.cluster.ray import RayCluster
from appliance.cluster.replicas import Link, Machine
from appliance.domain.errors import WorkerLost
from appliance.domain.prediction import Job
from appliance.runners.base import LoadSpec
from appliance.worker import data_socket
from appliance.worker.protocol import Run
from appliance.worker.replica import Replica
from tests.support.scripted_worker import ScriptedWorker, output, spec

MODEL = "test/echo"


def linked(run_dir: Path) -> RayCluster:
    """Return a cluster that has loaded ``MODEL`` in the replica ``runner-0``."""
    cluster = RayCluster(Path("socket"), run_dir)
    cluster._links[MODEL] = Link("runner-0", None, Machine("", Path("socket"), run_dir))  # no call over Serve
    return cluster


async def test_jobs_that_wait_for_the_connection_are_sent_with_it(
    replica: Replica, workers: list[ScriptedWorker], tmp_path: Path
) -> None:
    await replica.load(spec())
    server = await data_socket.listen(replica, tmp_path / "runner-0.sock")
    cluster = linked(tmp_path)
    cluster.submit(MODEL, Job("a", 1, {}))
    cluster.submit(MODEL, Job("b", 1, {}))
    stream = cluster.events(MODEL)
    reading = asyncio.ensure_future(anext(stream))
    async with asyncio.timeout(60):
        while not workers[0].sent:
            await asyncio.sleep(0)
        workers[0].says(output("a", 1))
        assert await reading == [output("a", 1)]
    assert workers[0].sent == [Run([Job("a", 1, {}), Job("b", 1, {})])]
    await replica.unload()
    assert [batch async for batch in stream] == []
    server.close()


async def test_a_replica_that_closes_its_socket_is_a_lost_worker(tmp_path: Path) -> None:
    cluster = linked(tmp_path)
    with pytest.raises(WorkerLost, match=f"the runner replica of {MODEL} has died"):
        await anext(cluster.events(MODEL))
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), tmp_path / "runner-0.sock")
    with pytest.raises(WorkerLost, match=f"the runner replica of {MODEL} has died: it closed its socket"):
        await anext(cluster.events(MODEL))
    server.close()


async def test_the_loss_of_a_worker_has_its_reason(
    replica: Replica, workers: list[ScriptedWorker], tmp_path: Path
) -> None:
    await replica.load(spec())
    server = await data_socket.listen(replica, tmp_path / "runner-0.sock")
    workers[0].die("exited with code 3")
    with pytest.raises(WorkerLost, match="exited with code 3"):
        await anext(linked(tmp_path).events(MODEL))
    server.close()


async def test_a_replica_that_cannot_be_started_is_a_lost_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = RayCluster(Path("socket"), Path("run"))

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Serve is not there")

    monkeypatch.setattr(serve, "run_many", refuse)
    spec = LoadSpec(
        model="a/b", version="v", kind="echo", options={}, weights=None, device="cpu", memory=1, threads=1,
        concurrency=1, cache="cache",
    )  # fmt: skip
    with pytest.raises(WorkerLost, match="Serve is not there"):
        await cluster.load(spec)
    await cluster.close()
