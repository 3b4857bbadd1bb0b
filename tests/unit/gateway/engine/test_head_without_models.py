"""The engine of a head that runs no models: all devices are those of nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.domain.errors import ApplianceError, ModelTooLarge
from appliance.domain.prediction import Status
from appliance.machine import Device
from appliance.nodes.messages import NodeFacts
from tests.support.api_client import Api, services_of
from tests.support.engine_bench import MIB, Bench
from tests.support.node_connection import LocalNode
from tests.support.trainable_kind import pupil
from tests.unit.conftest import api_of

SAID = "run only on the head of the cluster, which runs no models (hardware.devices in models.yaml is none)"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "head")
    bench.node, bench.runs_models = "head", False
    await bench.start()
    yield bench
    await bench.stop()
    await bench.cluster.close()


def join(bench: Bench, folder: Path, name: str = "box", **device: Any) -> None:
    node = LocalNode(folder / name)
    given = {"name": "cpu", "kind": "cpu", "memory": 10 * MIB, "label": "A CPU", **device}
    facts = NodeFacts(
        name=name, host="10.0.0.2", port=8770, version="1", labels={}, threads=7, devices=(Device(**given),),
        run_dir=str(node.folders.run_dir), outputs=str(node.folders.outputs),
    )  # fmt: skip
    bench.engine.nodes.joined(facts, node)  # type: ignore[arg-type]  # it does as much


async def create_model(api: Api) -> None:
    model = {"owner": "me", "name": "mine", "visibility": "private", "hardware": "cpu"}
    assert (await api.post("/v1/models", json=model)).status_code == 201


async def train(api: Api, bench: Bench) -> Any:
    route = f"/v1/models/test/pupil/versions/{bench.more[0].version}/trainings"
    given = {"train_data": "data:,moo", "delay": 600}
    return await api.post(route, json={"destination": "me/mine", "input": given})


async def test_a_prediction_waits_for_a_node_and_for_the_next_one(bench: Bench, tmp_path: Path) -> None:
    waiting = await bench.submit(bench.echo, text="a")
    (status,) = (each for each in bench.engine.status().models if each.name == "test/echo")
    assert status.fits_nowhere == "no schedulable node may hold it: add a node with a device for it"
    join(bench, tmp_path)
    assert (await bench.ended(waiting)).status is Status.SUCCEEDED
    assert bench.scheduler.devices("test/echo") == ("box/cpu",)

    running = await bench.submit(bench.stream, text="a", delay=30)
    await bench.until(running, Status.PROCESSING)
    bench.engine.nodes.lost("box", "gone")
    again = await bench.submit(bench.echo, text="b")
    await bench.engine.cancel(running.id, "me")
    join(bench, tmp_path, "other")
    assert (await bench.ended(again)).status is Status.SUCCEEDED
    assert bench.scheduler.devices("test/echo") == ("other/cpu",)


async def test_a_model_that_is_too_large_for_the_nodes_is_refused(bench: Bench, tmp_path: Path) -> None:
    join(bench, tmp_path)
    with pytest.raises(ModelTooLarge, match=r"test/big needs 100\.0 MiB, but box/cpu has 10\.0 MiB"):
        await bench.submit(bench.big, text="a")


async def test_nodes_of_another_kind_are_refused(bench: Bench, tmp_path: Path) -> None:
    said = r"kind cuda, and this cluster uses machines without GPUs \(cluster\.devices in models\.yaml"
    with pytest.raises(ApplianceError, match=said):
        join(bench, tmp_path, kind="cuda")
    assert bench.current_devices.nodes == []


async def test_trainings_are_refused_and_stored_ones_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path / "head")
    bench.node, bench.more = "head", [pupil(monkeypatch)]
    await bench.start()
    async with api_of(bench) as api:
        await create_model(api)
        stored = (await train(api, bench)).json()["id"]
    bench.runs_models = False
    await bench.restart()
    for model in await bench.store.registry.models():
        bench.catalogue.put(model)
    async with Api(services_of(bench)) as api:
        refused = await train(api, bench)
        assert (refused.status_code, refused.json()["title"]) == (422, "The head runs no models")
        assert refused.json()["detail"].startswith(f"Trainings {SAID}: let the head run models")
        failed = (await api.get(f"/v1/trainings/{stored}")).json()
        assert (failed["status"], f"Trainings {SAID}" in failed["error"]) == ("failed", True)
    await bench.stop()
    await bench.cluster.close()


async def test_a_push_of_a_cog_project_is_refused(bench: Bench) -> None:
    async with api_of(bench) as api:
        await create_model(api)
        config = api.services.config
        code = config.code.model_copy(update={"cog": True})
        services = msgspec.structs.replace(api.services, config=config.model_copy(update={"code": code}))
        async with Api(services) as allowed:
            refused = await allowed.post("/v1/models/me/mine/versions", json={"source": "/v1/files/abc"})
    assert (refused.status_code, refused.json()["title"]) == (422, "The head runs no models")
    assert refused.json()["detail"].startswith(f"Cog projects {SAID}: let the head run models")


async def test_the_routes_say_that_the_head_runs_no_models(bench: Bench, tmp_path: Path) -> None:
    bench.sampler.history.add(bench.sampler.sample(bench.engine.status(), 1.0))
    async with api_of(bench) as api:
        status = (await api.get("/admin/status")).json()
        assert (status["runs_models"], status["devices"]) == (False, [])
        assert {(each["memory"]["fits"], each["memory"]["problem"]) for each in status["models"]} == {
            (True, None)
        }
        assert (await api.get("/v1/hardware")).json() == []
        for path in ("/admin/residency", "/admin/history", "/admin/machine", "/metrics"):
            assert (await api.get(path)).status_code == 200
        load = await api.post("/admin/models/test/echo/load")
        assert (load.status_code, "add a node that has one" in load.json()["detail"]) == (503, True)
        (catalogue, *_) = (await api.get("/admin/catalogue")).json()["models"]
        assert catalogue["fit"] == {"state": "not known", "device": None, "evicts": []}
        join(bench, tmp_path)
        status = (await api.get("/admin/status")).json()
        assert [each["name"] for each in status["devices"]] == ["box/cpu"]
        assert [each["name"] for each in status["models"] if not each["memory"]["fits"]] == ["test/big"]
