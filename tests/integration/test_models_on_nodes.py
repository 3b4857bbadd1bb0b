"""Models on other nodes of a cluster: an engine, real Ray, real replicas, worker processes and agents.

The nodes are Ray nodes on this machine, with agents and data folders of their own. There is no zygote, so
each worker process imports its libraries itself.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio
import ray
from ray import serve
from ray.cluster_utils import Cluster

from appliance.cluster.ray import RayCluster
from appliance.cluster.replicas import resource
from appliance.domain.errors import WorkerLost
from appliance.domain.file import output_files
from appliance.domain.prediction import Done, Emitted, Job, Output, Prediction, Status
from appliance.runners.base import LoadSpec
from appliance.scheduler import Residency, SleepFootprint
from appliance.worker.replica import ReplicaStats
from tests.support.agents import TestHead, TestNode
from tests.support.appliance_process import PATIENCE
from tests.support.engine_bench import MIB, Bench, entry

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODEL = 300 * MIB  # a worker process of the echo model needs much less


class Nodes:
    """Ray with the head's node, and further nodes with agents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._patch = pytest.MonkeyPatch()
        for name in ("_private.utils.write", "_common.utils.reset"):  # other tests must not find this Ray
            self._patch.setattr(f"ray.{name}_ray_address", lambda *_: None)
        self.ray = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "resources": {resource("head"): 1},
                "include_dashboard": False,
                "object_store_memory": 80 * MIB,
                "temp_dir": str(folder / "ray"),
            },
        )
        ray.init(address=self.ray.address, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        self.head = TestHead(folder / "head", lost_after=3.0)
        self.nodes: dict[str, TestNode] = {}
        self._raylets: dict[str, Any] = {}

    async def add(self, name: str) -> TestNode:
        """Start a node, and let it join."""
        self._raylets[name] = self.ray.add_node(
            num_cpus=1, resources={resource(name): 1}, object_store_memory=80 * MIB
        )
        node = self.nodes[name] = TestNode(self.folder / name, name, self.head)
        await node.start()
        await node.announce()
        return node

    async def kill(self, name: str) -> None:
        """Kill all processes of a node at once: Ray, the replicas, the worker processes and the agent."""
        node = self.nodes.pop(name)
        await node.agent.close()
        self.ray.remove_node(self._raylets.pop(name), allow_graceful=False)

    async def close(self) -> None:
        for node in self.nodes.values():
            await node.agent.close()
        serve.shutdown()
        ray.shutdown()
        self.ray.shutdown()
        self._patch.undo()


class NodeBench(Bench):
    """An engine on the head. Its models are loaded on other nodes only."""

    def __init__(self, nodes: Nodes) -> None:
        super().__init__(nodes.folder / "head")
        self.nodes = nodes
        self.node = "head"
        self.capacity = MODEL + 10 * MIB
        self.sleeper = entry("test/sleeper", weights="10 MiB")
        self.pair = entry("test/pair", stream=True)
        self.machines = {"test/pair": 2}
        self.more = [self.sleeper, self.pair]
        self.asleep = SleepFootprint(MODEL, MIB)
        names = ("test/echo", "test/stream", "test/files", "test/sleeper", "test/pair")
        self.estimated = dict.fromkeys(names, MODEL)
        self.only_on = dict.fromkeys(names, frozenset({"box", "spare", "third"}))
        self.only_on["test/pair"] = frozenset({"head", "spare", "third"})
        self.open_cluster()

    def open_cluster(self) -> None:
        run_dir = self.folder / "run"
        run_dir.mkdir(parents=True, exist_ok=True)
        outputs = self.folder / "files" / "outputs"
        self.cluster: Any = RayCluster(
            run_dir / "zygote.sock", run_dir, node="head", address="127.0.0.1", outputs=outputs
        )

    async def let_nodes_join(self) -> None:
        self.nodes.head.events = self.engine.nodes  # type: ignore[assignment]  # what it tells is told here
        await self.nodes.head.start()

    async def restart(self) -> None:
        """Replace the gateway: the store, Ray, the replicas and their models stay."""
        await self.stop()
        await self.nodes.head.nodes.close()
        await self.cluster.close()
        self.open_cluster()
        await self.start()

    async def ended(self, prediction: Prediction) -> Prediction:
        record = await self.engine.wait(prediction.id, PATIENCE)
        assert record is not None
        assert record.status.terminal, record
        return record

    async def until_state(self, model: str, state: Residency) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.scheduler.residency(model) is not state:
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[NodeBench]:
    folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))
    nodes = Nodes(folder)
    bench = NodeBench(nodes)
    await bench.start()
    await nodes.add("box")
    yield bench
    for model in bench.scheduler.models:
        await bench.cluster.unload(model)
    await bench.stop()
    await nodes.head.nodes.close()
    await bench.cluster.close()
    await nodes.close()
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_stream_comes_from_a_node(bench: NodeBench) -> None:
    prediction = await bench.submit(bench.stream, text="a b c")
    ended = await bench.ended(prediction)
    assert (ended.status, list(ended.output)) == (Status.SUCCEEDED, ["a ", "b ", "c"])
    assert (bench.scheduler.devices("test/stream"), ended.hardware) == (("box/cpu",), "cpu")


async def test_the_parts_of_a_model_on_two_machines_end_together(bench: NodeBench) -> None:
    spec = LoadSpec(
        model="test/parts", version="v", kind="echo", options=bench.catalogue.options(bench.echo),
        weights=None, device="cpu", placement=("box/cpu", "head/cpu"), memory=MODEL, threads=1,
        concurrency=1, cache=str(bench.folder / "cache" / "echo"),
    )  # fmt: skip
    for _ in range(2):  # the second load needs the replicas of the first one
        await bench.cluster.load(spec)
        workers = await worker_processes(bench, spec.model)
        events = bench.cluster.events(spec.model)
        bench.cluster.submit(spec.model, Job("a", 1, {"text": "hello"}))
        sent = await next_events(events)
        while not isinstance(sent[-1].event, Done):
            sent += await next_events(events)
        assert [each.event.values for each in sent if isinstance(each.event, Output)] == [["hello"]]
        bench.cluster.acknowledge(spec.model, "a")
        psutil.Process(workers[1]).kill()
        with pytest.raises(WorkerLost, match=r"^on node head: the worker process of test/parts"):
            while True:
                await next_events(events)
        assert not any(map(psutil.pid_exists, workers))


async def worker_processes(bench: NodeBench, model: str) -> list[int]:
    """Return the process ids of the parts of a model, the leader first."""
    links = bench.cluster._parts[model].links
    stats = [await links[index].handle.stats.remote() for index in sorted(links)]
    found = [msgspec.msgpack.decode(each, type=ReplicaStats) for each in stats]
    assert [each.part.index for each in found if each.part is not None] == [0, 1]
    return [each.pid for each in found if each.pid is not None]


async def next_events(events: AsyncIterator[Any]) -> list[Emitted]:
    """Return the next events of predictions."""
    async with asyncio.timeout(PATIENCE):
        while not isinstance(message := await anext(events), list):
            pass
    return message


async def test_input_and_output_files_are_transferred(bench: NodeBench) -> None:
    contents = [b"one" * 100_000, b"two"]
    urls = ["data:text/plain;base64," + base64.b64encode(each).decode() for each in contents]
    predictions = [await bench.submit(bench.files_model, file=url) for url in urls]
    for prediction, content in zip(predictions, contents, strict=True):
        ended = await bench.ended(prediction)
        assert ended.status is Status.SUCCEEDED, ended.error
        (file,) = output_files(ended.output)
        assert (bench.files.folder / file.path).read_bytes() == content
    run_dir = bench.nodes.folder / "box" / "run"
    async with asyncio.timeout(PATIENCE):  # once the node knows that the ends are stored
        while [path for path in run_dir.rglob("*") if path.is_file() and "puts" in str(path)]:
            await asyncio.sleep(0.05)


async def test_a_cancel_reaches_the_node_and_other_predictions_go_on(bench: NodeBench) -> None:
    other = await bench.submit(bench.stream, text="a b c d", chunk_delay=0.5)
    prediction = await bench.submit(bench.stream, text="a", delay=600)
    await bench.until(prediction, Status.PROCESSING)
    await bench.engine.cancel(prediction.id, "me")
    assert (await bench.ended(prediction)).status is Status.CANCELED
    ended = await bench.ended(other)
    assert (ended.status, len(ended.output), ended.attempt) == (Status.SUCCEEDED, 4, 1)
    async with asyncio.timeout(PATIENCE):
        while bench.scheduler.running("test/stream"):
            await asyncio.sleep(0.01)


async def test_a_model_on_a_node_sleeps_and_wakes(bench: NodeBench) -> None:
    await bench.engine.load(bench.sleeper)
    await bench.cluster.sleep("test/sleeper", 1)
    await bench.cluster.wake("test/sleeper")
    assert (await bench.ended(await bench.submit(bench.sleeper, text="x"))).status is Status.SUCCEEDED
    await bench.engine.unload(bench.sleeper)
    await bench.until_state("test/sleeper", Residency.COLD)


async def test_a_broken_connection_ends_the_worker_process_and_the_predictions_run_again(
    bench: NodeBench,
) -> None:
    await bench.ended(await bench.submit(bench.stream, text="a"))
    link = bench.cluster._links["test/stream"]
    worker = msgspec.msgpack.decode(await link.handle.stats.remote(), type=ReplicaStats).pid
    prediction = await bench.submit(bench.stream, text="a", delay=3)
    await bench.until(prediction, Status.PROCESSING)
    link.connection.close()
    ended = await bench.ended(prediction)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 2)
    assert worker is not None
    assert not psutil.pid_exists(worker)


async def test_the_next_gateway_adopts_the_models_and_predictions_of_a_node(bench: NodeBench) -> None:
    silent = await bench.submit(bench.stream, text="a", delay=15)
    words = await bench.submit(bench.stream, text="a b c d e f", chunk_delay=2)
    await bench.until(silent, Status.PROCESSING)
    await bench.output_of(words)
    await bench.restart()
    assert bench.scheduler.residency("test/stream") is Residency.READY
    for prediction, output in ((silent, ["a"]), (words, ["a ", "b ", "c ", "d ", "e ", "f"])):
        ended = await bench.ended(prediction)
        assert (ended.status, ended.attempt, list(ended.output)) == (Status.SUCCEEDED, 1, output), ended.error


async def test_the_predictions_of_a_killed_node_run_again_or_keep_their_output(bench: NodeBench) -> None:
    await bench.ended(await bench.submit(bench.stream, text="a"))
    await bench.nodes.add("spare")
    assert bench.scheduler.devices("test/stream") == ("box/cpu",)
    with_output = await bench.submit(bench.stream, text="a b", chunk_delay=600)
    await bench.output_of(with_output)
    silent = [await bench.submit(bench.stream, text="a", delay=8) for _ in range(3)]
    for prediction in silent:
        await bench.until(prediction, Status.PROCESSING)
    await bench.nodes.kill("box")
    failed = await bench.ended(with_output)
    assert (failed.status, list(failed.output)) == (Status.FAILED, ["a "])
    assert "Prediction interrupted" in (failed.error or "")
    ended = [await bench.ended(prediction) for prediction in silent]
    assert [(each.status, each.attempt, each.error) for each in ended] == [(Status.SUCCEEDED, 2, None)] * 3
    assert bench.scheduler.devices("test/stream") == ("spare/cpu",)
    assert list(bench.scheduler.capacities) == ["head/cpu", "spare/cpu"]


async def test_a_model_on_two_machines_is_adopted_and_runs_again_after_the_loss_of_a_part(
    bench: NodeBench,
) -> None:
    running = await bench.submit(bench.pair, text="a b c d", chunk_delay=3)
    await bench.output_of(running)
    assert sorted(bench.scheduler.devices("test/pair")) == ["head/cpu", "spare/cpu"]
    await bench.restart()
    assert bench.scheduler.residency("test/pair") is Residency.READY
    ended = await bench.ended(running)
    assert (ended.status, ended.attempt, len(ended.output)) == (Status.SUCCEEDED, 1, 4), ended.error
    silent = await bench.submit(bench.pair, text="a", delay=3)
    await bench.until(silent, Status.PROCESSING)
    workers = await worker_processes(bench, "test/pair")
    psutil.Process(workers[1]).kill()
    ended = await bench.ended(silent)
    assert (ended.status, ended.attempt, ended.error) == (Status.SUCCEEDED, 2, None)
    assert not any(map(psutil.pid_exists, workers))
    workers = await worker_processes(bench, "test/pair")
    await bench.engine.unload(bench.pair)
    await bench.until_state("test/pair", Residency.COLD)
    assert not any(map(psutil.pid_exists, workers))


async def test_a_drained_node_finishes_its_predictions_and_loads_nothing(bench: NodeBench) -> None:
    running = await bench.submit(bench.stream, text="a", delay=5)
    await bench.until(running, Status.PROCESSING)
    await bench.nodes.add("third")
    bench.nodes.head.nodes.drain("spare")
    ended = await bench.ended(running)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    await bench.until_state("test/stream", Residency.COLD)
    later = await bench.ended(await bench.submit(bench.stream, text="b"))
    assert later.status is Status.SUCCEEDED
    assert bench.scheduler.devices("test/stream") == ("third/cpu",)
