"""Replicas on other nodes, without Ray: what is sent there, and what happens when the node is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from appliance.cluster import node_spec
from appliance.cluster.ray import RayCluster
from appliance.cluster.runner_replica import Outcome, RunnerReplica
from appliance.domain.errors import ApplianceError, LoadFailed, NodeLost
from appliance.runners.base import LoadSpec
from appliance.worker.replica import ReplicaStats
from tests.support.node_connection import LocalNode
from tests.support.scripted_worker import ScriptedWorker
from tests.unit.worker.conftest import workers  # noqa: F401  # a fixture


class Handle:
    """A Serve handle whose replica answers at once, or never."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loads: list[tuple[LoadSpec, ...]] = []
        self.hangs = False
        self.unloads = 0
        self.stats_reply = ReplicaStats(None, [], [], None)

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, method: str) -> Any:
        return _Method(self, method)

    async def answer(self, method: str, arguments: tuple[bytes, ...]) -> bytes | None:
        if method == "load":
            self.loads.append(tuple(msgspec.msgpack.decode(each, type=LoadSpec) for each in arguments))
        if self.hangs:
            await asyncio.Event().wait()
        self.unloads += method == "unload"
        if method == "stats":
            return msgspec.msgpack.encode(self.stats_reply)
        return msgspec.msgpack.encode(Outcome(levels=[1])) if method != "unload" else None


class _Method:
    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self._name = name

    def remote(self, *arguments: bytes) -> Awaitable[bytes | None]:
        return self._handle.answer(self._name, arguments)


class FakeServe:
    """Keeps the replicas that were started and deleted, and the options of their actors."""

    def __init__(self) -> None:
        self.handles: dict[str, Handle] = {}
        self.options: dict[str, dict[str, Any]] = {}
        self.deleted: list[str] = []

    def run_many(self, targets: list[Any], **_: Any) -> list[Handle]:
        (target,) = targets
        self.options[target.name] = target.target._bound_deployment.ray_actor_options
        handle = self.handles[target.name] = Handle(target.name)
        return [handle]

    def delete(self, name: str, **_: Any) -> None:
        self.deleted.append(name)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    fake = FakeServe()
    monkeypatch.setattr(serve, "run_many", fake.run_many)
    monkeypatch.setattr(serve, "delete", fake.delete)
    return fake


def spec(node: str, weights: Path | None = None) -> LoadSpec:
    return LoadSpec(
        model="a/b", version="v", kind="echo", options={}, weights=None if weights is None else str(weights),
        device="cpu", placement=(f"{node}/cpu",), memory=1, threads=1, concurrency=1, cache="/h/cache/echo",
    )  # fmt: skip


def cluster_of(folder: Path) -> tuple[RayCluster, LocalNode]:
    """Return a cluster of the head and the node ``box``."""
    run_dir = folder / "head" / "run"
    outputs = folder / "head" / "files" / "outputs"
    cluster = RayCluster(run_dir / "zygote.sock", run_dir, node="head", outputs=outputs)
    node = LocalNode(folder)
    cluster.add_node("box", node.folders, node, "10.0.0.2")
    return cluster, node


async def test_a_replica_is_started_on_the_node_and_gets_its_names_and_paths(
    fake: FakeServe, tmp_path: Path
) -> None:
    cluster, node = cluster_of(tmp_path)
    weights = tmp_path / "weights-on-head"
    weights.write_text("weights")
    asked = spec("box", weights)
    await cluster.copy_weights(asked)
    assert await cluster.load(asked) == {1}
    name = "runner-box-0"
    assert fake.options[name]["resources"] == {"appliance-node-box": 0.001}
    ((sent, kept),) = fake.handles[name].loads
    assert kept == asked
    assert sent.weights == str(node.home / "weights" / weights.name)
    assert (sent.placement, sent.cache) == (("cpu",), str(node.folders.cache / "echo"))
    await cluster.close()


async def test_the_head_of_a_cluster_has_its_own_replicas(fake: FakeServe, tmp_path: Path) -> None:
    cluster, _ = cluster_of(tmp_path)
    await cluster.load(spec("head"))
    ((sent, kept),) = fake.handles["runner-0"].loads
    assert (sent.placement, sent.cache, kept) == (("cpu",), "/h/cache/echo", spec("head"))
    assert fake.options["runner-0"]["resources"] == {"appliance-node-head": 0.001}
    await cluster.close()


async def test_a_single_machine_knows_no_nodes(fake: FakeServe, tmp_path: Path) -> None:
    cluster = RayCluster(tmp_path / "zygote.sock", tmp_path)
    asked = msgspec.structs.replace(spec("x"), placement=("a/b",))  # a declared name with a slash
    assert await cluster.copy_weights(asked) == 0
    await cluster.load(asked)
    assert fake.handles["runner-0"].loads == [(asked,)]
    assert fake.options["runner-0"] == {"num_cpus": 0}
    await cluster.close()


async def test_calls_to_a_lost_node_end_and_its_replicas_are_deleted(fake: FakeServe, tmp_path: Path) -> None:
    cluster, _ = cluster_of(tmp_path)
    await cluster.load(spec("box"))
    fake.handles["runner-box-0"].hangs = True
    waking = asyncio.ensure_future(cluster.wake("a/b"))
    await asyncio.sleep(0)
    cluster.remove_node("box", "no heartbeat")
    with pytest.raises(NodeLost, match="node box is lost: no heartbeat"):
        await waking
    await cluster.unload("a/b")  # returns, although the replica does not answer
    with pytest.raises(NodeLost, match="node box is lost"):
        await cluster.load(spec("box"))
    async with asyncio.timeout(60):
        while "runner-box-0" not in fake.deleted:
            await asyncio.sleep(0.001)
    await cluster.close()


async def test_a_model_moves_to_the_machine_of_its_devices(fake: FakeServe, tmp_path: Path) -> None:
    cluster, _ = cluster_of(tmp_path)
    await cluster.load(spec("box"))
    await cluster.load(spec("head"))  # its worker process on the node has died
    assert [len(fake.handles[name].loads) for name in ("runner-box-0", "runner-0")] == [1, 1]
    assert cluster._links["a/b"].name == "runner-0"
    await cluster.close()


async def test_weights_that_cannot_be_copied_fail_the_load(fake: FakeServe, tmp_path: Path) -> None:
    cluster, node = cluster_of(tmp_path)
    node.problem = ApplianceError("its disk is full")
    with pytest.raises(LoadFailed, match="weights of model a/b could not be copied to node box: its disk"):
        await cluster.copy_weights(spec("box"))
    node.problem = NodeLost("no answer")
    with pytest.raises(NodeLost):
        await cluster.copy_weights(spec("box"))
    await cluster.close()


def survive(monkeypatch: pytest.MonkeyPatch, *handles: Handle, deleting: tuple[str, ...] = ()) -> None:
    """Let Serve have replicas of an earlier gateway; those named in ``deleting`` never answer."""
    found = {each.name: SimpleNamespace(status=ApplicationStatus.RUNNING) for each in handles}
    found |= {name: SimpleNamespace(status=ApplicationStatus.DELETING) for name in deleting}
    by_name = {each.name: each for each in handles}

    def get_app_handle(name: str) -> Handle:
        if name not in by_name:
            raise RayServeException(f"Application '{name}' does not exist.")
        return by_name[name]

    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications=found))
    monkeypatch.setattr(serve, "get_app_handle", get_app_handle)


async def test_copies_and_files_of_adopted_models_are_not_deleted(
    fake: FakeServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, node = cluster_of(tmp_path)
    handle = Handle("runner-box-4")
    handle.stats_reply = ReplicaStats(spec("box"), [], ["held"], 1, copies=["/n/weights/a"])
    survive(monkeypatch, handle)
    for id in ("held", "finished"):
        (node.inputs / id).mkdir()
    (adopted,) = await cluster.adopt()
    assert adopted.spec == spec("box")
    assert [path.name for path in node.inputs.iterdir()] == ["held"]
    other = tmp_path / "other"
    other.touch()
    await cluster.copy_weights(msgspec.structs.replace(spec("box", other), model="a/other"))
    assert node.kept == ["/n/weights/a"]
    await cluster.close()


async def test_a_replica_that_is_being_deleted_is_not_adopted(
    fake: FakeServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway died while it deleted the replica, which no longer answers."""
    cluster, _ = cluster_of(tmp_path)
    deleted = Handle("runner-7")
    deleted.hangs = True
    survive(monkeypatch, deleted, deleting=("runner-7", "runner-box-3"))
    async with asyncio.timeout(60):
        assert await cluster.adopt() == []
        await cluster.load(spec("head"))
    assert "runner-8" in fake.handles  # no replica gets a name that may still be in use
    await cluster.close()


async def test_a_replica_that_is_gone_after_it_was_listed_is_not_adopted(
    fake: FakeServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, _ = cluster_of(tmp_path)
    gone = SimpleNamespace(applications={"runner-0": SimpleNamespace(status=ApplicationStatus.RUNNING)})
    survive(monkeypatch)
    monkeypatch.setattr(serve, "status", lambda: gone)
    assert await cluster.adopt() == []
    assert fake.deleted == ["runner-0"]
    await cluster.close()


async def test_a_load_that_an_earlier_gateway_began_is_ended(
    fake: FakeServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its model would stay in memory, and the next load may wait for this memory for ever."""
    cluster, _ = cluster_of(tmp_path)
    loading, loaded = Handle("runner-0"), Handle("runner-1")
    loaded.stats_reply = ReplicaStats(spec("head"), [], [], 1)
    survive(monkeypatch, loading, loaded)
    assert len(await cluster.adopt()) == 1
    assert (loading.unloads, loaded.unloads) == (1, 0)
    await cluster.close()


async def test_nodes_may_join_and_be_lost_during_the_adoption(
    fake: FakeServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, node = cluster_of(tmp_path)
    survive(monkeypatch)
    other = LocalNode(tmp_path / "second")

    async def drop_others(_: list[str]) -> None:
        cluster.add_node("second", other.folders, other, "10.0.0.3")
        cluster.remove_node("box", "no heartbeat")

    monkeypatch.setattr(node, "drop_others", drop_others)
    assert await cluster.adopt() == []
    await cluster.load(spec("second"))
    assert [name for name in fake.handles if "box" in name] == []
    await cluster.close()


async def test_no_file_is_deleted_on_a_node_that_joins(
    fake: FakeServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent has deleted all files before; the files there now are of the first new predictions."""
    cluster, _ = cluster_of(tmp_path)
    survive(monkeypatch)
    await cluster.adopt()
    other = LocalNode(tmp_path / "second")
    cluster.add_node("second", other.folders, other, "10.0.0.3")
    (other.inputs / "new").mkdir()
    await cluster.load(spec("second"))
    assert [path.name for path in other.inputs.iterdir()] == ["new"]
    await cluster.close()


async def test_a_replica_reports_the_paths_of_copied_weights(
    workers: list[ScriptedWorker],  # noqa: F811
    tmp_path: Path,
) -> None:
    replica = RunnerReplica("runner-box-0", "/nonexistent", str(tmp_path))
    asked = spec("box", Path("/h/weights"))
    asked = msgspec.structs.replace(
        asked, options={"loras": {"a": "/h/a"}, "template": "/tmp"}, paths=("/h/a",)
    )
    copied = {"/h/weights": "/n/weights", "/h/a": "/n/a"}
    local = node_spec.for_node(asked, "box", Path("/n/cache"), copied)
    await replica.load(msgspec.msgpack.encode(local), msgspec.msgpack.encode(asked))
    stats = msgspec.msgpack.decode(await replica.stats(), type=ReplicaStats)
    assert stats.spec == asked
    assert stats.copies == ["/n/a", "/n/weights"]
    assert replica._server is not None
    replica._server.close()


async def test_a_replica_that_is_being_created_when_its_node_is_lost_is_deleted_afterwards(
    fake: FakeServe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    creating, lost, created = threading.Event(), threading.Event(), threading.Event()
    calls: list[str] = []

    def run_many(targets: list[Any], **options: Any) -> list[Handle]:
        creating.set()
        lost.wait(60)
        calls.append("created")
        created.set()
        return fake.run_many(targets, **options)

    def delete(name: str, **_: Any) -> None:
        calls.append(f"deleted {name}")
        lost.set()
        created.wait(60)  # the creation ends before the first deletion

    monkeypatch.setattr(serve, "run_many", run_many)
    monkeypatch.setattr(serve, "delete", delete)
    cluster, _ = cluster_of(tmp_path)
    loading = asyncio.ensure_future(cluster.load(spec("box")))
    await asyncio.to_thread(creating.wait, 10)
    cluster.remove_node("box", "no heartbeat")
    with pytest.raises(NodeLost):
        await loading
    async with asyncio.timeout(60):
        while len(calls) < 3:
            await asyncio.sleep(0.001)
    assert calls == ["deleted runner-box-0", "created", "deleted runner-box-0"]
    await cluster.close()
