"""An engine whose cluster gets and loses nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from appliance import weights
from appliance.config import ClusterConfig, FolderSource, ModelConfig
from appliance.domain.errors import ApplianceError, LoadFailed, NodeLost
from appliance.domain.prediction import Status
from appliance.gateway.engine import nodes as engine_nodes
from appliance.gateway.engine.loads import ATTEMPTS
from appliance.machine import Device
from appliance.nodes.messages import NodeFacts
from appliance.scheduler import Demand, Residency, policy
from tests.support.engine_bench import MIB, Bench
from tests.support.node_connection import LocalNode
from tests.unit.conftest import api_of


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """An engine on the head, which has memory for one model of 6 MiB."""
    bench = Bench(tmp_path / "head")
    bench.node = "head"
    bench.estimated = {"test/echo": 6 * MIB, "test/stream": 6 * MIB}
    await bench.start()
    yield bench
    await bench.stop()
    await bench.cluster.close()


def facts(name: str, node: LocalNode, **changed: Any) -> NodeFacts:
    given: dict[str, Any] = {
        "name": name, "host": "10.0.0.2", "port": 8770, "version": "1", "labels": {}, "threads": 7,
        "devices": (Device(name="cpu", kind="cpu", memory=10 * MIB, label="A CPU"),),
        "run_dir": str(node.folders.run_dir), "outputs": str(node.folders.outputs),
    }  # fmt: skip
    return NodeFacts(**{**given, **changed})


def join(bench: Bench, folder: Path, name: str = "box", **changed: Any) -> LocalNode:
    node = LocalNode(folder / name)
    bench.engine.nodes.joined(facts(name, node, **changed), node)  # type: ignore[arg-type]  # it does as much
    return node


async def test_a_model_is_loaded_on_a_node_with_its_weights_and_threads(bench: Bench, tmp_path: Path) -> None:
    await bench.engine.load(bench.echo)
    join(bench, tmp_path)
    first = await bench.submit(bench.stream, text="a b", delay=1)
    running = await bench.until(first, Status.PROCESSING)
    assert bench.scheduler.devices("test/echo") == ("head/cpu",)
    assert bench.scheduler.devices("test/stream") == ("box/cpu",)
    assert bench.cluster.copies == [("test/stream", "box")]
    spec = bench.cluster._loaded["test/stream"].spec
    assert (spec.threads, spec.placement, spec.device) == (7, ("box/cpu",), "cpu")
    assert running.hardware == "cpu"
    assert (await bench.ended(first)).status is Status.SUCCEEDED


@pytest.mark.parametrize(
    ("network", "may_hold_parts", "logged"), [("10.0.0.0/24", True, False), ("10.9.0.0/24", False, True)]
)
async def test_only_nodes_in_the_private_network_hold_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, network: str, may_hold_parts: bool, logged: bool
) -> None:
    bench = Bench(tmp_path / "head")
    bench.node = "head"
    bench.cluster_config = ClusterConfig(address="head", private_network=network)
    await bench.start()
    join(bench, tmp_path)
    bench.scheduler.add(Demand(model="a/large", concurrency=1, memory=MIB, machines=2))
    assert bench.scheduler.footprints.of("a/large").devices == ("head/cpu", "box/cpu")[: 1 + may_hold_parts]
    reason = "its address 10.0.0.2 is outside of cluster.private_network (10.9.0.0/24)"
    assert (f"node box gets no parts of models on several machines: {reason}" in caplog.text) is logged
    await bench.stop()
    await bench.cluster.close()


async def test_a_prediction_with_output_fails_with_its_node_and_keeps_the_output(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.engine.load(bench.echo)
    join(bench, tmp_path)
    prediction = await bench.submit(bench.stream, text="a b c", chunk_delay=30)
    await bench.output_of(prediction)
    bench.engine.nodes.lost("box", "no heartbeat")
    failed = await bench.ended(prediction)
    assert failed.status is Status.FAILED
    assert failed.error == ("Prediction interrupted; please retry (code: PA): node box is lost: no heartbeat")
    assert list(failed.output) == ["a "]
    assert bench.scheduler.residency("test/stream") is Residency.COLD
    assert list(bench.scheduler.capacities) == ["head/cpu"]


async def test_a_prediction_without_output_runs_again_on_another_node(bench: Bench, tmp_path: Path) -> None:
    await bench.engine.load(bench.echo)
    join(bench, tmp_path)
    prediction = await bench.submit(bench.stream, text="a", delay=1)
    await bench.until(prediction, Status.PROCESSING)
    join(bench, tmp_path, "other")
    bench.engine.nodes.lost("box", "no heartbeat")
    ended = await bench.ended(prediction)
    assert (ended.status, ended.attempt, list(ended.output)) == (Status.SUCCEEDED, 2, ["a"])
    assert bench.scheduler.devices("test/stream") == ("other/cpu",)


async def test_a_node_that_is_lost_during_a_load_is_no_fault_of_the_model(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.engine.load(bench.echo)
    join(bench, tmp_path)
    loading, copied = asyncio.Event(), bench.cluster.copy_weights

    async def copy_weights(spec: Any) -> int:
        if not loading.is_set():
            loading.set()
            bench.engine.nodes.lost("box", "its cable was pulled")
            raise NodeLost("node box is lost")
        return await copied(spec)

    monkeypatch.setattr(bench.cluster, "copy_weights", copy_weights)
    prediction = await bench.submit(bench.stream, text="a")
    await loading.wait()
    join(bench, tmp_path, "second")
    assert (await bench.ended(prediction)).status is Status.SUCCEEDED
    assert bench.scheduler.devices("test/stream") == ("second/cpu",)


async def test_the_status_shows_a_copy_of_weights(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.engine.load(bench.echo)
    join(bench, tmp_path)
    copying, copied = asyncio.Event(), asyncio.Event()

    async def copy_weights(_: Any) -> int:
        copying.set()
        await copied.wait()
        return 5

    monkeypatch.setattr(bench.cluster, "copy_weights", copy_weights)
    prediction = await bench.submit(bench.stream, text="a")
    await copying.wait()
    assert shown(bench)["test/stream"] == ("loading", "box")
    copied.set()
    await bench.ended(prediction)
    assert shown(bench)["test/stream"] == ("ready", None)


def shown(bench: Bench) -> dict[str, tuple[str, str | None]]:
    return {each.name: (each.state, each.copying_to) for each in bench.engine.status().models}


async def test_a_drained_node_gets_no_loads_until_it_is_used_again(bench: Bench, tmp_path: Path) -> None:
    await bench.engine.load(bench.echo)
    join(bench, tmp_path)
    bench.engine.pin(bench.echo, pinned=True)
    bench.engine.nodes.draining("box", True)
    prediction = await bench.submit(bench.stream, text="a")
    assert (await bench.engine.get(prediction.id, "me")).status is Status.STARTING
    bench.engine.nodes.draining("box", False)
    assert (await bench.ended(prediction)).status is Status.SUCCEEDED
    assert bench.scheduler.devices("test/stream") == ("box/cpu",)


async def test_the_reason_why_a_model_is_still_on_a_draining_node_is_given(
    bench: Bench, tmp_path: Path
) -> None:
    await bench.engine.load(bench.echo)
    join(bench, tmp_path)
    prediction = await bench.submit(bench.stream, text="a", delay=30)
    await bench.until(prediction, Status.PROCESSING)
    assert bench.engine.nodes.staying("box") == {}
    bench.engine.nodes.draining("box", True)
    assert bench.engine.nodes.staying("box") == {"test/stream": "1 prediction is running"}


async def test_a_model_that_fits_on_no_node_is_logged_once_and_shown_in_the_status(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.engine.load(bench.echo)
    join(bench, tmp_path)
    bench.engine.pin(bench.echo, pinned=True)
    bench.engine.nodes.draining("box", True)
    await bench.submit(bench.stream, text="a")
    reason = (
        "it fits only on a draining node (box): use the node again with `appliance drain NODE --undo`, "
        "or add another one"
    )
    assert {each.name: each.fits_nowhere for each in bench.engine.status().models} == {
        "test/echo": None, "test/stream": reason, "test/big": None, "test/files": None,
    }  # fmt: skip
    start = time.monotonic()
    with caplog.at_level("WARNING", "appliance.gateway.engine.nodes"):
        for passed in (10, 20):
            bench.engine.nodes.log_unplaceable(start + passed)
        bench.engine.nodes.draining("box", False)
        bench.engine.nodes.log_unplaceable(start + 30)
    logged = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert logged == [f"test/stream fits on no node, and 1 prediction waits for it: {reason}"]


async def test_the_memory_of_a_node_is_measured_without_waiting_for_it(bench: Bench, tmp_path: Path) -> None:
    node = LocalNode(tmp_path / "box")
    node.used = {"cpu": 3 * MIB}
    bench.engine.nodes.joined(facts("box", node), node)  # type: ignore[arg-type]
    await bench.current_devices.refresh(["box/cpu"])
    assert bench.current_devices.in_use() == {"box/cpu": 3 * MIB}
    residency = {each.name: each.foreign for each in bench.engine.residency_report().devices}
    assert residency == {"head/cpu": 0, "box/cpu": 3 * MIB}
    bench.engine.nodes.lost("box", "gone")
    assert [each.name for each in bench.engine.residency_report().devices] == ["head/cpu"]


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        ("head", {}, "the cluster has a node head"),
        ("box", {}, "the cluster has a node box"),
        (
            "gpus",
            {"devices": (Device(name="cuda:0", kind="cuda", memory=1, label="A GPU"),)},
            "node gpus has devices of the kind cuda, and the head has cpu",
        ),
    ],
)
async def test_a_node_that_does_not_fit_is_refused(
    bench: Bench, tmp_path: Path, name: str, changed: dict[str, Any], problem: str
) -> None:
    join(bench, tmp_path)
    with pytest.raises(ApplianceError, match=problem):
        join(bench, tmp_path, name, **changed)
    assert list(bench.scheduler.capacities) == ["head/cpu", "box/cpu"]


async def test_without_a_cluster_no_node_can_join(tmp_path: Path) -> None:
    bench = await Bench(tmp_path / "single").start()
    with pytest.raises(ApplianceError, match="add a section cluster to models"):
        join(bench, tmp_path)
    await bench.stop()
    await bench.cluster.close()


async def test_the_admin_routes_and_the_metrics_show_the_devices_of_nodes(
    bench: Bench, tmp_path: Path
) -> None:
    join(bench, tmp_path)
    await bench.engine.load(bench.echo)
    bench.sampler.history.add(bench.sampler.sample(bench.engine.status(), 1.0))
    async with api_of(bench) as api:
        status = (await api.get("/admin/status")).json()
        residency = (await api.get("/admin/residency")).json()
        history = (await api.get("/admin/history")).json()
        metrics = (await api.get("/metrics")).text
        hardware = (await api.get("/v1/hardware")).json()
    for report in (status, residency, history):
        assert [device["name"] for device in report["devices"]] == ["head/cpu", "box/cpu"]
    assert [(each["label"], each["kind"]) for each in status["devices"]] == [("A CPU", "cpu")] * 2
    assert 'device="box/cpu"' in metrics
    assert hardware == [{"name": "A CPU", "sku": "cpu"}]


async def test_a_load_is_retried_after_some_time_while_its_node_answers(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection to the node breaks in each copy of weights, and the node answers right after."""
    monkeypatch.setattr(policy, "BACKOFF", (0.02, 0.02))
    await bench.engine.load(bench.echo)
    bench.engine.pin(bench.echo, pinned=True)
    join(bench, tmp_path)
    tried: list[float] = []

    async def copy_weights(_: Any) -> int:
        tried.append(time.monotonic())
        raise NodeLost("node box cannot be reached: the connection was closed")

    monkeypatch.setattr(bench.cluster, "copy_weights", copy_weights)
    failed = await bench.ended(await bench.submit(bench.stream, text="a"))
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert failed.error.endswith("node box cannot be reached: the connection was closed")
    assert len(tried) == ATTEMPTS
    assert all(later - earlier >= 0.02 for earlier, later in pairwise(tried))


@pytest.mark.parametrize("part", ["copy_weights", "load"])
async def test_a_load_that_fails_on_a_node_is_tried_on_another(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    await bench.engine.load(bench.echo)
    join(bench, tmp_path)
    join(bench, tmp_path, "other")
    tried: list[str] = []
    works = getattr(bench.cluster, part)

    async def fails_on_box(spec: Any) -> Any:
        tried.append(spec.placement[0])
        if spec.placement[0] == "box/cpu":
            raise LoadFailed("its disk is full")
        return await works(spec)

    monkeypatch.setattr(bench.cluster, part, fails_on_box)
    for _ in range(2):
        assert (await bench.ended(await bench.submit(bench.stream, text="a"))).status is Status.SUCCEEDED
    assert tried == ["box/cpu", "other/cpu"]


async def test_a_load_that_fails_on_two_nodes_fails(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.engine.load(bench.echo)
    for name in ("box", "other", "third"):
        join(bench, tmp_path, name)
    tried: list[str] = []

    async def load(spec: Any) -> frozenset[int]:
        tried.append(spec.placement[0])
        raise LoadFailed("the file has a wrong format")

    monkeypatch.setattr(bench.cluster, "load", load)
    failed = await bench.ended(await bench.submit(bench.stream, text="a"))
    assert (failed.status, failed.error) == (Status.FAILED, "the file has a wrong format")
    assert len(set(tried)) == len(tried) == 2


async def test_copies_of_weights_are_found_when_a_node_joins_and_missed_when_deleted(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FolderSource.model_construct(path=tmp_path / "tiny")
    source.path.mkdir()
    (source.path / "model.bin").write_bytes(b"weights")
    for entry in (bench.echo, bench.stream):
        model = entry.model.model_copy(update={"source": source})
        changed = msgspec.structs.replace(entry, model=model)
        monkeypatch.setitem(bench.catalogue._index.by_key, entry.name, changed)
    copy = tmp_path / "box" / "weights" / "tiny"
    copy.mkdir(parents=True)
    join(bench, tmp_path)
    await until(lambda: places(bench, "test/stream") == {"head", "box"})
    copy.rmdir()  # for the copy of another model
    await bench.engine.load(bench.echo)
    await bench.ended(await bench.submit(bench.stream, text="a"))
    await until(lambda: places(bench, "test/stream") == {"head"})
    bench.engine.nodes.lost("box", "no heartbeat")


def places(bench: Bench, model: str) -> set[str]:
    return bench.scheduler._locality.nodes_with_weights(model)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def test_weights_that_are_just_deleted_have_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the sizes of the other weights are measured."""

    def fails(*_: object) -> NoReturn:
        raise FileNotFoundError("model.safetensors")

    monkeypatch.setattr(weights, "weight_size_of", fails)
    model = ModelConfig.model_validate(
        {"name": "test/copied", "kind": "transformers", "source": {"path": str(tmp_path)}}
        | {"options": {"task": "text-classification"}}
    )
    assert engine_nodes._weight_size(tmp_path, model) == 0
