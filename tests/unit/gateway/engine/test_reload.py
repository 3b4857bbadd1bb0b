"""An edited models.yaml applied to a running engine and its routes, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.config import Report, load, runtime
from appliance.domain import token
from appliance.domain.access import UNRESTRICTED
from appliance.domain.prediction import Prediction, Status
from appliance.domain.token import Scope, Token
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.gateway.catalogue.servable import servable
from appliance.gateway.engine.reload import catalogue_of
from appliance.scheduler import SleepFootprint
from tests.support.api_client import SECRET, Api, services_of
from tests.support.engine_bench import MIB, Bench
from tests.unit.gateway.catalogue.test_servable import nested_header

ECHO: dict[str, Any] = {"name": "test/echo", "kind": "echo", "memory": "1MiB", "options": {"concurrency": 2}}
STREAM: dict[str, Any] = {
    "name": "test/stream", "kind": "echo", "memory": "1MiB", "options": {"stream": True},
}  # fmt: skip


class Edited:
    """A bench whose models are those of a file, and which is notified when that has changed."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.file = bench.folder / "models.yaml"

    async def start(self) -> Edited:
        self.write(ECHO, STREAM)
        (self.bench.folder / "run").mkdir(exist_ok=True)
        config = load(self.file)
        for name, secret, scope in (("admin", SECRET, Scope.ADMIN), ("reader", "reader", Scope.READ)):
            await self.bench.store.add_token(
                Token(
                    id=name,
                    name=name,
                    owner="me",
                    digest=token.digest(secret),
                    scope=scope,
                    created_at=0,
                )
            )
        self.services = services_of(self.bench, config)
        before = self.bench.catalogue.entries_by_key
        found = servable(config, self.bench.folder, self.bench.hardware, 0.0)
        self.bench.catalogue.replace_with(await catalogue_of(found, self.bench.store))
        self.bench.engine.reconcile([], before)
        self.services.configure(config)
        report = await self.services.reload.apply(self.services.configure)
        assert report == Report()
        return self

    def write(self, *models: dict[str, Any], **sections: Any) -> None:
        self.file.write_text(yaml.safe_dump({**sections, "models": list(models)}))

    async def reload(self, *models: dict[str, Any], **sections: Any) -> Report:
        self.write(*models, **sections)
        return await self.services.reload.apply(self.services.configure)

    def entry(self, name: str = "test/echo") -> ServedVersion:
        return self.bench.catalogue.resolve(name, UNRESTRICTED)

    async def submit(self, name: str = "test/echo", **input: Any) -> Prediction:
        return await self.bench.submit(self.entry(name), **input)


@pytest.fixture
async def edited(bench: Bench) -> AsyncIterator[Edited]:
    edited = await Edited(bench).start()
    yield edited
    await edited.services.reload.close()


async def test_a_new_model_is_served_and_a_removed_one_is_unknown(edited: Edited) -> None:
    report = await edited.reload(ECHO, {**ECHO, "name": "test/fresh", "aliases": ["old/name"]})
    assert (report.added, report.removed, report.changed) == (("test/fresh",), ("test/stream",), {})
    record = await edited.bench.ended(await edited.submit("old/name", text="hi"))
    assert (record.model, record.output) == ("test/fresh", "hi")
    async with Api(edited.services) as api:
        gone = await api.post("/v1/models/test/stream/predictions", json={"input": {"text": "x"}})
        never = await api.post("/v1/models/test/never/predictions", json={"input": {"text": "x"}})
        assert (gone.status_code, gone.json()) == (never.status_code, never.json())
        assert [model["name"] for model in (await api.get("/v1/models")).json()["results"]] == [
            "fresh", "echo",
        ]  # fmt: skip


async def test_what_runs_on_a_changed_model_ends_on_what_it_began_with(edited: Edited) -> None:
    running = [await edited.submit(text="old", delay=0.3) for _ in range(2)]
    queued = await edited.submit(text="old and waiting")
    for prediction in running:
        await edited.bench.until(prediction, Status.PROCESSING)
    report = await edited.reload({**ECHO, "options": {"concurrency": 2, "stream": True}}, STREAM)
    assert report.changed == {"test/echo": ("options.stream",)}
    after = await edited.submit(text="new")
    assert after.version != queued.version
    for prediction in (*running, queued):
        record = await edited.bench.ended(prediction)
        assert record.status is Status.SUCCEEDED
        assert isinstance(record.output, str)  # one that streams gives a list
    record = await edited.bench.ended(after)
    assert (record.status, record.output) == (Status.SUCCEEDED, ["new"])


async def test_a_model_that_was_loaded_is_loaded_anew_and_others_stay(edited: Edited) -> None:
    for name in ("test/echo", "test/stream"):
        await edited.bench.ended(await edited.submit(name, text="load"))
    await edited.reload({**ECHO, "memory": "2MiB"}, {**STREAM, "priority": 1})
    scheduler = edited.bench.scheduler
    while scheduler.reserved("cpu") != {"test/echo": 2 * MIB, "test/stream": MIB}:
        await asyncio.sleep(0.005)
    assert [each.kind.value for each in scheduler.events() if each.model == "test/stream"] == [
        "load", "ready",
    ]  # fmt: skip
    assert scheduler.demand("test/stream").priority == 1


async def test_models_that_can_sleep_still_can_after_a_reload(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.main = 10 * MIB
    await bench.start()
    edited = await Edited(bench).start()
    await edited.reload({**ECHO, "options": {"weights": "1MiB"}}, STREAM)
    assert bench.scheduler.demand("test/echo").sleep_footprint == SleepFootprint(residue=MIB, main_memory=MIB)
    await edited.services.reload.close()
    await bench.stop()
    await bench.cluster.close()


async def test_what_waits_for_a_removed_model_that_is_not_loaded_fails_and_says_why(edited: Edited) -> None:
    blocking = {**ECHO, "name": "test/blocking", "memory": "10MiB"}
    await edited.reload(ECHO, STREAM, blocking)
    holding = await edited.submit("test/blocking", delay=30)
    await edited.bench.until(holding, Status.PROCESSING)
    queued = await edited.submit("test/stream", text="never")
    await edited.reload(ECHO, blocking)
    record = await edited.bench.ended(queued)
    assert record.status is Status.FAILED
    assert "test/stream was changed or removed in models.yaml" in (record.error or "")
    await edited.bench.engine.cancel(holding.id, "me")


async def test_a_removed_model_finishes_and_then_gives_its_memory_back(edited: Edited) -> None:
    running = await edited.submit("test/stream", text="word ", repeat=3, chunk_delay=0.05)
    await edited.bench.output_of(running)
    await edited.reload(ECHO)
    assert (await edited.bench.ended(running)).status is Status.SUCCEEDED
    while "test/stream" in edited.bench.scheduler.models:
        await asyncio.sleep(0.005)
    assert edited.bench.scheduler.free("cpu") == 10 * MIB
    # It may come back, also while it is still going.
    await edited.reload(ECHO, STREAM)
    assert (await edited.bench.ended(await edited.submit("test/stream", text="x"))).output == ["x"]


async def test_a_worker_lost_while_it_is_replaced_takes_its_predictions_along(edited: Edited) -> None:
    running = await edited.submit(delay=30)
    await edited.bench.until(running, Status.PROCESSING)
    await edited.reload({**ECHO, "options": {"stream": True}})
    edited.bench.cluster.lose("test/echo", "it fell over")
    record = await edited.bench.ended(running)
    assert record.status is Status.FAILED  # the other version would be given the input of this one
    assert "changed or removed in models.yaml" in (record.error or "")
    assert (await edited.bench.ended(await edited.submit(text="new"))).output == ["new"]


async def test_a_bad_file_changes_nothing_and_says_why(edited: Edited) -> None:
    edited.file.write_text("models:\n  - {name: test/echo, kind: echo, colour: red}\n")
    async with Api(edited.services) as api:
        reply = await api.post("/admin/reload")
        assert reply.status_code == 400
        assert "models.yaml:2: model test/echo, key colour: unknown key" in reply.json()["detail"]
    assert edited.entry("test/stream").name == "test/stream"
    assert "test/stream" in edited.bench.scheduler.models


async def test_settings_hold_at_once(edited: Edited) -> None:
    limits = {"predictions_per_minute": 1, "queue": 5}
    report = await edited.reload(
        ECHO, STREAM, limits=limits, server={"account": "me", "account_name": "Us", "port": 9000}
    )
    assert report.needs_restart == ("server.port",)
    assert set(report.settings) == {
        "server.account",
        "server.account_name",
        "limits.predictions_per_minute",
        "limits.queue",
    }
    async with Api(edited.services) as api:
        assert (await api.get("/v1/account")).json()["name"] == "Us"
        await api.create(text="one")
        reply = await api.post("/v1/models/test/echo/predictions", json={"input": {"text": "two"}})
        assert reply.status_code == 429


async def test_only_an_administrator_may_reload(edited: Edited) -> None:
    for secret, status in ((None, 401), ("reader", 403), (SECRET, 200)):
        async with Api(edited.services, secret) as caller:
            assert (await caller.post("/admin/reload")).status_code == status


async def test_two_reloads_at_once_are_done_one_after_the_other(edited: Edited) -> None:
    first, second = await asyncio.gather(
        edited.reload(ECHO, {**ECHO, "name": "test/fresh"}),
        edited.services.reload.apply(edited.services.configure),
    )
    assert (first.added, first.removed) == (("test/fresh",), ("test/stream",))
    assert second == Report()


async def test_weights_that_cannot_be_had_are_said_and_the_rest_is_done(
    edited: Edited, tmp_path: Path
) -> None:
    lost = {"name": "test/lost", "kind": "embeddings", "source": {"path": str(tmp_path / "nothing")}}
    report = await edited.reload(ECHO, lost)
    assert (report.added, report.removed) == (("test/lost",), ("test/stream",))
    assert "nothing" in report.not_served["test/lost"]
    assert "cannot be served yet: test/lost" in str(report)


async def test_a_model_whose_files_are_of_no_use_is_left_out_and_said_to_be(
    edited: Edited, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nested_header(tmp_path)
    broken = {"name": "test/broken", "kind": "embeddings", "source": {"path": str(tmp_path)}}
    listed = {"slug": "all", "name": "All", "description": "x", "models": ["test/broken", "test/echo"]}
    report = await edited.reload(ECHO, broken, collections=[listed])
    assert report.not_served.keys() == {"test/broken"}
    assert "model test/broken is not served: " in caplog.text
    assert (await edited.bench.ended(await edited.submit(text="hi"))).output == "hi"
    async with Api(edited.services) as api:
        (said,) = (await api.get("/admin/status")).json()["not_served"]
        assert said["name"] == "test/broken"
        assert "model.safetensors is damaged" in said["problem"]
        models = (await api.get("/v1/collections/all")).json()["models"]
        assert [model["name"] for model in models] == ["echo"]
        await edited.reload(ECHO)
        assert (await api.get("/admin/status")).json()["not_served"] == []


async def test_a_gateway_that_takes_over_finds_what_is_in_force(edited: Edited) -> None:
    started_with = load(edited.file)
    await edited.reload(ECHO, limits={"queue": 3})
    edited.file.write_text("nonsense")  # edited again, and wrong
    found = runtime.read(edited.bench.folder / "run", started_with)
    assert (found.limits.queue, [model.name for model in found.models]) == (3, ["test/echo"])


async def test_instances_of_a_changed_model_are_loaded_anew_too(edited: Edited) -> None:
    edited.bench.engine.instances.scale("test/echo", 2, 2)
    for key in ("test/echo", "test/echo#2"):
        edited.bench.scheduler.request_load(key)
    edited.bench.engine.decide()
    while edited.bench.scheduler.reserved("cpu") != {"test/echo": MIB, "test/echo#2": MIB}:
        await asyncio.sleep(0.005)
    await edited.reload(ECHO | {"memory": "2MiB"})
    while "test/echo" not in edited.bench.scheduler.reserved("cpu"):
        await asyncio.sleep(0.005)
    assert edited.bench.scheduler.demand("test/echo#2").memory in {MIB, 2 * MIB}
    await edited.reload({**ECHO, "name": "test/other"})
    while edited.bench.scheduler.models != ["test/other"]:
        await asyncio.sleep(0.005)
