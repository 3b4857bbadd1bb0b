"""Trainings: their routes, the versions they make, and what those need to be run and removed."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain import token
from appliance.domain.errors import ApplianceError, ContentMissing
from appliance.domain.prediction import Prediction
from appliance.domain.token import Scope, Token
from appliance.gateway.catalogue import trainings
from appliance.runners.base import LoadSpec
from tests.support.api_client import SECRET, Api, services_of
from tests.support.appliance_process import until
from tests.support.engine_bench import Bench
from tests.support.memory_bucket import MemoryBucket
from tests.support.trainable_kind import pupil

ORIGIN = "http://models.example.org:8000"


class School:
    """A model that can be trained, and a destination."""

    def __init__(self, api: Api, bench: Bench) -> None:
        self.api = api
        self.bench = bench
        self.base = bench.more[0].version

    async def train(
        self, phrase: str = "moo", destination: str = "me/cow", api: Api | None = None, **more: Any
    ) -> Any:
        body = {"destination": destination, "input": {"train_data": f"data:,{phrase}"}} | more
        return await (api or self.api).post(
            f"/v1/models/test/pupil/versions/{self.base}/trainings", json=body
        )

    async def ended(self, id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while True:
            found: dict[str, Any] = (await self.api.get(f"/v1/trainings/{id}")).json()
            if found["status"] not in {"starting", "processing"}:
                return found
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.005)

    async def trained(self, phrase: str = "moo", destination: str = "me/cow") -> str:
        """The id of a new version."""
        record = await self.ended((await self.train(phrase, destination)).json()["id"])
        assert record["status"] == "succeeded", record
        return str(record["output"]["version"].split(":")[1])

    async def says(self, version: str, text: str = "hello") -> Any:
        body = {"version": version, "input": {"text": text}}
        reply = await self.api.post("/v1/predictions", json=body, headers={"Prefer": "wait"})
        return reply.json().get("output", reply.json())


@pytest.fixture
async def school(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[School]:
    bench = Bench(tmp_path)
    bench.bucket = getattr(request, "param", None)
    bench.more = [pupil(monkeypatch)]
    await bench.start()
    for name, secret, owner in (("first", SECRET, "me"), ("second", "other", "you")):
        await bench.store.add_token(
            Token(
                id=name, name=name, owner=owner, digest=token.digest(secret), created_at=0, scope=Scope.ADMIN
            )
        )
    async with Api(services_of(bench)) as api:
        model = {"owner": "me", "name": "cow", "visibility": "private", "hardware": "cpu"}
        assert (await api.post("/v1/models", json=model)).status_code == 201
        yield School(api, bench)
    await bench.stop()
    await bench.cluster.close()


async def test_a_training_makes_a_version_that_answers(school: School) -> None:
    created = await school.train(version="ignored")
    assert created.status_code == 201
    first = created.json()
    assert (first["status"], first["model"], first["version"]) == ("starting", "test/pupil", school.base)
    assert "output" not in first
    assert first["urls"]["get"] == f"{ORIGIN}/v1/trainings/{first['id']}"
    record = await school.ended(first["id"])
    assert record["status"] == "succeeded", record
    name, _, version = record["output"]["version"].partition(":")
    assert (name, len(version)) == ("me/cow", 64)
    archive = zipfile.ZipFile(io.BytesIO((await school.api.get(record["output"]["weights"])).content))
    assert archive.read("phrase.txt") == b"moo"
    assert "loss" in record["logs"]
    destination = (await school.api.get("/v1/models/me/cow")).json()
    assert destination["latest_version"]["id"] == version
    versions = (await school.api.get("/v1/models/me/cow/versions")).json()["results"]
    assert [found["id"] for found in versions] == [version]
    assert await school.says(version) == "moo hello"
    assert await school.says("me/cow") == "moo hello"
    assert await school.says(school.base) == "hello"
    body = {"input": {"text": "x"}}
    prediction = (await school.api.post("/v1/models/me/cow/predictions", json=body)).json()
    assert (prediction["model"], prediction["version"]) == ("me/cow", version)


async def test_the_newest_version_is_the_one_that_answers(school: School) -> None:
    first, second = await school.trained("moo"), await school.trained("baa")
    assert first != second
    assert await school.says("me/cow") == "baa hello"
    assert await school.says(first) == "moo hello"
    assert await school.trained("moo") == first  # the same weights are the same version
    listed = (await school.api.get("/v1/models/me/cow/versions")).json()["results"]
    assert len(listed) == 2


async def test_versions_outlive_a_restart(school: School) -> None:
    version = await school.trained("moo")
    await school.bench.restart()
    async with Api(services_of(school.bench)) as api:
        again = School(api, school.bench)
        assert await again.says(version) != "moo hello"  # the models are read by the app, not by the bench
        for model in await school.bench.store.registry.models():
            school.bench.catalogue.put(model)
        await school.bench.trainings.fill(school.bench.catalogue)
        assert await again.says(version) == "moo hello"


async def test_trainings_and_predictions_do_not_mix(school: School) -> None:
    record = (await school.train()).json()
    await school.ended(record["id"])
    assert (await school.api.get("/v1/predictions")).json()["results"] == []
    (listed,) = (await school.api.get("/v1/trainings")).json()["results"]
    assert listed["id"] == record["id"]
    made = (await school.api.post("/v1/predictions", json={"version": "test/pupil", "input": {}})).json()
    assert (await school.api.get(f"/v1/trainings/{made['id']}")).status_code == 404
    # Old clients ask for a training at the URL of a prediction.
    assert (await school.api.get(f"/v1/predictions/{record['id']}")).json()["id"] == record["id"]
    assert (await school.api.post(f"/v1/predictions/{record['id']}/cancel")).status_code == 200


async def test_a_training_is_cancelled(school: School) -> None:
    body = {"train_data": "data:,x", "delay": 60}
    record = (await school.train(input=body)).json()
    (listed,) = (await school.api.get("/v1/trainings")).json()["results"]
    assert listed["id"] == record["id"]
    assert "output" not in listed
    canceled = (await school.api.post(f"/v1/trainings/{record['id']}/cancel")).json()
    assert canceled["status"] == "canceled"
    assert (await school.api.get("/v1/models/me/cow")).json()["latest_version"] is None
    assert await school.trained()


async def test_bad_data_fails_the_training(school: School) -> None:
    record = await school.ended((await school.train("")).json()["id"])
    assert (record["status"], record["error"]) == ("failed", "train_data: the file has no examples")


@pytest.mark.parametrize(
    ("destination", "status", "detail"),
    [
        ("me/none", 404, "The specified training destination does not exist"),
        ("test/pupil", 400, "defined in models.yaml"),
        ("nonsense", 404, "The specified training destination does not exist"),
    ],
)
async def test_a_destination_must_be_ones_own(
    school: School, destination: str, status: int, detail: str
) -> None:
    reply = await school.train(destination=destination)
    assert reply.status_code == status
    assert detail in reply.json()["detail"]
    async with Api(school.api.services, "other") as stranger:
        assert (await school.train(api=stranger)).status_code == 404


@pytest.mark.parametrize(
    ("more", "status"),
    [({"input": {}}, 422), ({"destination": 3}, 422), ({"extra": 1}, 422), ({"webhook": "x"}, 422)],
)
async def test_a_wrong_training_is_refused(school: School, more: dict[str, Any], status: int) -> None:
    assert (await school.train(**more)).status_code == status


async def test_what_cannot_be_trained_says_so(school: School, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = f"/v1/models/test/pupil/versions/{'0' * 64}/trainings"
    body = {"destination": "me/cow", "input": {"train_data": "data:,x"}}
    reply = await school.api.post(unknown, json=body)
    assert (reply.status_code, reply.json()["title"]) == (422, "Invalid version or not permitted")


async def test_a_private_model_is_nobody_elses(school: School) -> None:
    version = await school.trained()
    async with Api(school.api.services, "other") as stranger:
        assert (await stranger.get("/v1/models/me/cow")).status_code == 404
        assert (await stranger.get("/v1/models/me/cow/versions")).status_code == 404
        body = {"version": version, "input": {}}
        assert (await stranger.post("/v1/predictions", json=body)).status_code == 422
        assert (await stranger.post("/v1/models/me/cow/predictions", json={"input": {}})).status_code == 404


async def test_a_version_is_deleted_with_its_predictions_and_weights(school: School) -> None:
    version = await school.trained()
    body = {"input": {"text": "x"}}
    made = await school.api.post("/v1/models/me/cow/predictions", json=body, headers={"Prefer": "wait"})
    id = made.json()["id"]
    folder = school.bench.folder / "files" / "versions"
    assert [path.name for path in folder.iterdir()] == [version]
    refused = await school.api.delete("/v1/models/me/cow")
    assert (refused.status_code, "versions" in refused.json()["detail"]) == (400, True)
    reply = await school.api.delete(f"/v1/models/me/cow/versions/{version}")
    assert (reply.status_code, reply.content) == (202, b"")
    assert (await school.api.get(f"/v1/predictions/{id}")).status_code == 404
    assert (await school.api.post("/v1/predictions", json={"version": version, **body})).status_code == 422
    assert list(folder.iterdir()) == []
    assert (await school.api.delete(f"/v1/models/me/cow/versions/{version}")).status_code == 404
    assert (await school.api.delete("/v1/models/me/cow")).status_code == 204


@pytest.mark.parametrize("school", [MemoryBucket()], indirect=True, ids=["bucket"])
async def test_a_version_is_copied_to_the_bucket_and_deleted_there(school: School) -> None:
    bucket = school.bench.bucket
    assert isinstance(bucket, MemoryBucket)
    version = await school.trained()
    assert await school.says(version) == "moo hello"
    await until(lambda: any(path.startswith(f"versions/{version}/") for path in bucket.objects()))
    assert await school.says(version) == "moo hello"
    reply = await school.api.delete(f"/v1/models/me/cow/versions/{version}")
    assert reply.status_code == 202, reply.text
    await until(lambda: not any(path.startswith("versions/") for path in bucket.objects()))


@pytest.mark.parametrize("school", [MemoryBucket()], indirect=True, ids=["bucket"])
async def test_a_failed_version_leaves_no_copy_of_its_weights(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> str:
        raise ApplianceError(f"{path.name} cannot be read")

    monkeypatch.setattr(trainings, "fingerprint", fail)
    monkeypatch.setattr(trainings, "ADAPTER", "not made")  # so the output file is the weights
    record = await school.ended((await school.train()).json()["id"])
    assert (record["status"], "could not be created" in record["error"]) == ("failed", True)
    assert list((school.bench.folder / "files" / "versions").iterdir()) == []


@pytest.mark.parametrize("school", [MemoryBucket()], indirect=True, ids=["bucket"])
async def test_a_training_whose_weights_are_missing_in_the_bucket_fails(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def missing(path: Path, target: Path) -> None:
        raise ContentMissing

    monkeypatch.setattr(school.bench.files, "copy_content", missing)
    monkeypatch.setattr(trainings, "ADAPTER", "not made")  # so the output file is the weights
    record = await school.ended((await school.train()).json()["id"])
    assert record["status"] == "failed"
    assert "The content of the file is missing" in record["error"]


async def test_an_accepted_training_survives_a_restart(school: School) -> None:
    record = (await school.train(input={"train_data": "data:,moo", "delay": 60})).json()
    await school.bench.restart()
    live: Prediction = await school.bench.engine.get(record["id"], "me")
    assert live.destination == "me/cow"
    await school.bench.engine.cancel(live.id, "me")


async def test_the_first_version_has_its_model_loaded_again(
    school: School, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(_: Any, *, adapted: bool, weights: str | None = None) -> dict[str, Any]:
        return {"stream": False, "adapted": adapted}

    monkeypatch.setattr("appliance.runners.echo.options.EchoOptions.runner_options", loaded)
    loads: list[tuple[str, bool]] = []
    original = school.bench.cluster.load

    async def load(spec: LoadSpec) -> frozenset[int]:
        loads.append((spec.model, spec.options["adapted"]))
        return await original(spec)

    monkeypatch.setattr(school.bench.cluster, "load", load)  # only to look on
    await school.says(school.base)
    for phrase in ("moo", "baa"):
        assert await school.says(await school.trained(phrase)) == f"{phrase} hello"
    assert loads == [("test/pupil", False), ("test/pupil:training", False), ("test/pupil", True)]
