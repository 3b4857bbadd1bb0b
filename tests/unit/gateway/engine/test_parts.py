"""An engine that loads a model on several machines: copies of weights, and which node is avoided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.domain.errors import LoadFailed, NodeLost, WorkerLost
from appliance.domain.prediction import Status
from appliance.protocols.admin_types import ModelPart
from appliance.runners.base import LoadSpec
from tests.support.engine_bench import MIB, Bench
from tests.unit.gateway.engine.test_nodes import join, places, shown

MODEL = "test/stream"
DEVICES = ("head/cpu", "box/cpu", "third/cpu")


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """An engine with two nodes. The first load of ``MODEL`` gets devices of all three machines."""
    bench = Bench(tmp_path / "head")
    bench.node = "head"
    bench.estimated = {MODEL: 6 * MIB}
    await bench.start()
    for name in ("box", "third"):
        join(bench, tmp_path, name, threads=3 if name == "third" else 7)
    loads, decisions = bench.engine._loads, [DEVICES]
    load = loads.load

    async def load_on_all(entry: Any, decided: Any) -> Any:
        devices = decisions.pop() if decisions else decided.devices
        return await load(entry, msgspec.structs.replace(decided, devices=devices))

    monkeypatch.setattr(loads, "load", load_on_all)
    yield bench
    await bench.stop()
    await bench.cluster.close()


async def test_weights_are_copied_to_all_nodes_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    copying = {"box": asyncio.Event(), "third": asyncio.Event()}
    copied: dict[str, LoadSpec] = {}

    async def copy_weights(spec: LoadSpec) -> int:
        (device,) = spec.placement
        copied[device.partition("/")[0]] = spec
        await copying[device.partition("/")[0]].wait()
        return 5

    monkeypatch.setattr(bench.cluster, "copy_weights", copy_weights)
    prediction = await bench.submit(bench.stream, text="a")
    async with asyncio.timeout(60):
        while len(copied) < 2:
            await asyncio.sleep(0.001)
        assert shown(bench)[MODEL] == ("loading", "box, third")
        copying["third"].set()
        while shown(bench)[MODEL] != ("loading", "box"):
            await asyncio.sleep(0.001)
    copying["box"].set()
    assert (await bench.ended(prediction)).status is Status.SUCCEEDED
    assert shown(bench)[MODEL] == ("ready", None)
    (status,) = [each for each in bench.engine.status().models if each.name == MODEL]
    assert status.parts == [ModelPart(node, "ready") for node in ("head", "box", "third")]
    loaded = bench.cluster._loaded[MODEL].spec
    assert (loaded.placement, loaded.device, loaded.part) == (DEVICES, "cpu", None)
    assert loaded.threads == 1  # as many as the machine with the fewest
    assert places(bench, MODEL) >= {"box", "third"}


async def test_a_copy_that_fails_ends_the_others_and_its_node_is_avoided(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended, works = asyncio.Event(), asyncio.Event(), bench.cluster.copy_weights

    async def copy_weights(spec: LoadSpec) -> int:
        if ended.is_set():
            return await works(spec)
        if spec.placement == ("third/cpu",):
            await began.wait()
            raise LoadFailed("its disk is full")
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 0

    monkeypatch.setattr(bench.cluster, "copy_weights", copy_weights)
    assert (await bench.ended(await bench.submit(bench.stream, text="a"))).status is Status.SUCCEEDED
    assert ended.is_set()
    assert list(bench.scheduler._models[MODEL].avoided) == ["third"]


async def test_a_node_that_is_lost_ends_the_copy_to_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended, works = asyncio.Event(), asyncio.Event(), bench.cluster.copy_weights

    async def copy_weights(spec: LoadSpec) -> int:
        if ended.is_set() or spec.placement != ("box/cpu",):
            return await works(spec)
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 0

    monkeypatch.setattr(bench.cluster, "copy_weights", copy_weights)
    prediction = await bench.submit(bench.stream, text="a")
    await began.wait()
    bench.engine.nodes.lost("third", "no heartbeat")
    assert (await bench.ended(prediction)).status is Status.SUCCEEDED
    assert ended.is_set()


@pytest.mark.parametrize("error", [LoadFailed("wrong format"), NodeLost("the connection broke")])
async def test_the_node_of_the_part_that_failed_is_avoided(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: LoadFailed | WorkerLost
) -> None:
    works, tried = bench.cluster.load, []
    error.node = "third"

    async def load(spec: LoadSpec) -> frozenset[int]:
        tried.append(spec.placement)
        if len(tried) == 1:
            raise error
        return await works(spec)

    monkeypatch.setattr(bench.cluster, "load", load)
    assert (await bench.ended(await bench.submit(bench.stream, text="a"))).status is Status.SUCCEEDED
    assert tried[0] == DEVICES
    assert list(bench.scheduler._models[MODEL].avoided) == ["third"]


async def test_a_node_that_was_lost_before_the_load_began(bench: Bench) -> None:
    bench.engine.nodes.lost("third", "no heartbeat")
    assert (await bench.ended(await bench.submit(bench.stream, text="a"))).status is Status.SUCCEEDED
    assert bench.cluster._loaded[MODEL].spec.placement != DEVICES
