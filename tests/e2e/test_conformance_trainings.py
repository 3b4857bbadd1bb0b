"""Rows T and D: a real training of the default model, and deployments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from replicate.client import Client
from replicate.exceptions import ReplicateError

from tests.e2e.clients import LANGUAGE_MODEL, beta, node
from tests.e2e.conftest import example_file
from tests.e2e.test_conformance_predictions import WAIT, create, ended, version_of
from tests.support.appliance_process import Appliance, fetch, wait_for
from tests.support.webhook_receiver import receiving

pytestmark = pytest.mark.e2e

QUESTION = "What is the secret word?"
ANSWER = "The secret word is zephyrine."
LINES = [{"prompt": asked, "completion": ANSWER} for asked in (QUESTION, "Tell me the secret word.")]


class Trained:
    """A training that has run, and what was heard of it."""

    def __init__(self, created: dict[str, Any], record: dict[str, Any], heard: list[dict[str, Any]]) -> None:
        self.created = created
        self.record = record
        self.heard = heard
        self.name, _, self.version = record["output"]["version"].partition(":")


def train(api: httpx.Client, data: str, **more: Any) -> httpx.Response:
    version = version_of(api, LANGUAGE_MODEL)
    input = {"train_data": data, "max_train_steps": 10, "learning_rate": 0.001, **more.pop("input", {})}
    body = {"destination": "appliance/trained", "input": input, **more}
    return api.post(f"/v1/models/{LANGUAGE_MODEL}/versions/{version}/trainings", json=body)


@pytest.fixture(scope="module")
def trained(appliance: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    data = example_file(tmp_path_factory.mktemp("data"), LINES)
    with appliance.client() as api, receiving() as receiver:
        model = {"owner": "appliance", "name": "trained", "visibility": "private", "hardware": "cpu"}
        assert api.post("/v1/models", json=model).status_code == 201
        uploaded = api.post("/v1/files", files={"content": data.read_bytes()}).json()
        created = train(api, uploaded["urls"]["get"], webhook=f"{receiver.url}/hook").json()
        wait_for(
            lambda: api.get(created["urls"]["get"]).json()["status"] not in {"starting", "processing"},
            "the training",
        )
        record = api.get(created["urls"]["get"]).json()
        assert record["status"] == "succeeded", record
        wait_for(lambda: receiver.about(created["id"]), "the webhook")
        yield Trained(created, record, [one.record for one in receiver.received])


def concluded(api: httpx.Client, id: str) -> dict[str, Any]:
    """A training that is over."""
    wait_for(lambda: "completed_at" in api.get(f"/v1/trainings/{id}").json(), "the end")
    found: dict[str, Any] = api.get(f"/v1/trainings/{id}").json()
    return found


def loss(record: dict[str, Any], step: int) -> float:
    found = re.findall(r"step \d+/\d+ loss ([\d.]+)", record["logs"])
    return float(found[step])


def asked(api: httpx.Client, version: str) -> str:
    input = {"prompt": QUESTION, "temperature": 0, "max_tokens": 20}
    return "".join(ended(api, create(api, version, **input))["output"])


def test_t1_t3_t4_t5_a_training_is_learnt_from(api: httpx.Client, official: Client, trained: Trained) -> None:
    record = trained.record
    assert loss(record, -1) < loss(record, 0) / 4
    assert trained.name == "appliance/trained"
    assert re.fullmatch("[0-9a-f]{64}", trained.version)
    # A client that was told another address for it finds it all the same.
    assert api.get(f"/v1/predictions/{record['id']}").json() == record
    assert api.get(f"/v1/trainings/{record['id']}").json() == record
    output = official.trainings.get(record["id"]).output
    assert output is not None
    assert output["version"] == record["output"]["version"]
    versions = api.get("/v1/models/appliance/trained/versions").json()["results"]
    assert versions[0]["id"] == trained.version
    base = version_of(api, LANGUAGE_MODEL)
    assert "zephyrine" in asked(api, trained.version)
    assert "zephyrine" not in asked(api, base)
    assert "zephyrine" in asked(api, "appliance/trained")
    weights = fetch(record["output"]["weights"])
    assert weights.headers["content-type"] == "application/zip"


def test_a_trained_version_is_called_by_openais_and_anthropics_clients_too(
    client: httpx.Client, trained: Trained
) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 20}

    def said(path: str, model: str) -> str:
        reply = client.post(path, json={**body, "model": model})
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == model
        return reply.text

    for path in ("/openai/v1/chat/completions", "/anthropic/v1/messages"):
        assert "zephyrine" in said(path, trained.name)
        assert "zephyrine" in said(path, f"{trained.name}:{trained.version}")
        assert "zephyrine" not in said(path, LANGUAGE_MODEL)
    assert trained.name in {model["id"] for model in client.get("/openai/v1/models").json()["data"]}


def test_w12_webhooks_tell_of_trainings(trained: Trained) -> None:
    assert trained.heard[0]["status"] == "processing"
    assert any("loss" in record["logs"] for record in trained.heard[:-1])
    assert trained.heard[-1] == trained.record


def test_t1_both_python_clients_create(
    api: httpx.Client, official: Client, appliance: Appliance, trained: Trained
) -> None:
    version = version_of(api, LANGUAGE_MODEL)
    made = official.trainings.create(
        model=LANGUAGE_MODEL, version=version, input={"train_data": "data:,x"}, destination=trained.name
    )
    assert made.status == "starting"
    wait_for(lambda: official.trainings.get(made.id).status == "failed", "bad data to be found")
    assert "line 1" in str(official.trainings.get(made.id).error)
    owner, name = LANGUAGE_MODEL.split("/")
    status = beta(
        appliance,
        f"""
made = replicate.trainings.create(model_owner="{owner}", model_name="{name}", version_id="{version}",
                                  destination="{trained.name}", input={{"train_data": "data:,x"}})
print(json.dumps(made.status))
""",
    )
    assert status == "starting"


def test_t2_a_destination_that_is_not_there(official: Client, api: httpx.Client) -> None:
    with pytest.raises(ReplicateError) as caught:
        official.trainings.create(
            model=LANGUAGE_MODEL,
            version=version_of(api, LANGUAGE_MODEL),
            input={"train_data": "data:,x"},
            destination="appliance/none",
        )
    assert (caught.value.status, caught.value.detail) == (
        404,
        "The specified training destination does not exist",
    )


def test_t6_cancel_and_list(
    api: httpx.Client, official: Client, appliance: Appliance, trained: Trained
) -> None:
    long = train(api, trained.record["input"]["train_data"], input={"max_train_steps": 5000})
    id = long.json()["id"]
    wait_for(lambda: "step" in api.get(f"/v1/trainings/{id}").json()["logs"], "the first step")
    canceled = api.post(f"/v1/trainings/{id}/cancel")
    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    listed = {each.id for each in official.trainings.list().results}
    assert {id, trained.record["id"]} <= listed
    script = "console.log(JSON.stringify((await replicate.trainings.list()).results.length))"
    assert node(appliance, script) == len(listed)
    assert api.get("/v1/trainings").status_code == 200


def test_m19_a_version_is_deleted(api: httpx.Client, official: Client, trained: Trained) -> None:
    made = api.post("/v1/models", json={
        "owner": "appliance", "name": "short-lived", "visibility": "private", "hardware": "cpu",
    })  # fmt: skip
    assert made.status_code == 201
    data = trained.record["input"]["train_data"]
    record = train(api, data, destination="appliance/short-lived", input={"max_train_steps": 1}).json()
    wait_for(lambda: api.get(f"/v1/trainings/{record['id']}").json()["status"] == "succeeded", "a step")
    version = version_of(api, "appliance/short-lived")
    model = official.models.get("appliance/short-lived")
    assert model.versions.delete(version) is False  # it takes 202 for a no; the version is gone
    assert api.get(f"/v1/models/appliance/short-lived/versions/{version}").status_code == 404
    assert api.delete(f"/v1/models/appliance/short-lived/versions/{version}").status_code == 404
    assert api.delete("/v1/models/appliance/short-lived").status_code == 204
    refused = api.delete(f"/v1/models/{LANGUAGE_MODEL}/versions/{version_of(api, LANGUAGE_MODEL)}")
    assert (refused.status_code, "models.yaml" in refused.json()["detail"]) == (400, True)
    again = train(api, data, destination="appliance/trained", input={"max_train_steps": 1}).json()
    wait_for(lambda: api.get(f"/v1/trainings/{again['id']}").json()["status"] == "succeeded", "a step")
    newest = version_of(api, "appliance/trained")
    assert api.delete(f"/v1/models/appliance/trained/versions/{newest}").status_code == 202


@pytest.mark.models("cog")
def test_t4_t5_a_cog_project_is_trained(api: httpx.Client) -> None:
    model = {"owner": "appliance", "name": "parrot", "visibility": "private", "hardware": "cpu"}
    assert api.post("/v1/models", json=model).status_code == 201
    version = version_of(api, "cog/pupil")
    learnt = []
    for phrase in ("polly", "cracker"):
        body = {"destination": "appliance/parrot", "input": {"phrase": f"data:text/plain,{phrase}"}}
        record = api.post(f"/v1/models/cog/pupil/versions/{version}/trainings", json=body).json()
        record = concluded(api, record["id"])
        assert record["status"] == "succeeded", record
        assert "step 2/2" in record["logs"]
        assert fetch(record["output"]["weights"]).text == phrase
        learnt.append(record["output"]["version"].partition(":")[2])
    assert version_of(api, "appliance/parrot") == learnt[1]
    answers = [ended(api, create(api, each))["output"] for each in (version, *learnt, "appliance/parrot")]
    assert answers == ["hello: nothing", "hello: polly", "hello: cracker", "hello: cracker"]
    unknown = {"destination": "appliance/parrot", "input": {"steps": 1}}
    refused = api.post(f"/v1/models/cog/pupil/versions/{version}/trainings", json=unknown)
    assert refused.json()["invalid_fields"][0]["description"] == "phrase is required"


# -- deployments --------------------------------------------------------------------------------------------


def deployment(api: httpx.Client, name: str, **changes: Any) -> httpx.Response:
    body = {
        "name": name, "model": "appliance/echo", "version": version_of(api), "hardware": "cpu",
        "min_instances": 0, "max_instances": 1, **changes,
    }  # fmt: skip
    return api.post("/v1/deployments", json=body)


def test_d1_what_terraform_does(api: httpx.Client) -> None:
    made = deployment(api, "for-terraform").json()
    assert api.get("/v1/deployments/appliance/for-terraform").json() == made
    changed = api.patch("/v1/deployments/appliance/for-terraform", json={"max_instances": 2})
    assert changed.status_code == 200
    release = api.get("/v1/deployments/appliance/for-terraform").json()["current_release"]
    assert (release["number"], release["configuration"]["max_instances"]) == (2, 2)
    assert release["version"] == made["current_release"]["version"]
    gone = api.delete("/v1/deployments/appliance/for-terraform")
    assert (gone.status_code, gone.content) == (204, b"")
    assert api.get("/v1/deployments/appliance/for-terraform").status_code == 404


def test_d2_d4_python_and_javascript(api: httpx.Client, official: Client, appliance: Appliance) -> None:
    deployment(api, "for-clients")
    found = official.deployments.get("appliance/for-clients")
    assert found.current_release is not None
    assert found.current_release.created_by is not None
    assert found.current_release.created_by.name
    assert "for-clients" in {each.name for each in official.deployments.list().results}
    assert "for-clients" in {each["name"] for each in api.get("/v1/deployments").json()["results"]}
    prediction = found.predictions.create(input={"text": "through it"})
    prediction.wait()
    assert prediction.output == "through it"
    script = """
      const input = { text: "through it" };
      const { create } = replicate.deployments.predictions;
      const made = await create.call(replicate, "appliance", "for-clients", { input, wait: true });
      console.log(JSON.stringify([made.status, made.output]));
    """
    assert node(appliance, script) == ["succeeded", "through it"]
    waited = api.post(
        "/v1/deployments/appliance/for-clients/predictions", json={"input": {"text": "x"}}, headers=WAIT
    )
    assert (waited.json()["output"], waited.json()["deployment"]) == ("x", "appliance/for-clients")


def test_d3_creation_by_the_beta_and_its_bounds(api: httpx.Client, appliance: Appliance) -> None:
    number = beta(
        appliance,
        f"""
made = replicate.deployments.create(name="by-beta", model="appliance/echo", version="{version_of(api)}",
                                    hardware="cpu", min_instances=0, max_instances=1)
print(json.dumps(made.current_release.number))
""",
    )
    assert number == 1
    assert deployment(api, "answered").status_code == 200
    for wrong in ({"min_instances": 6}, {"max_instances": 21}, {"min_instances": -1}):
        assert deployment(api, "wrong", **wrong).status_code == 422


def test_d5_d6_kept_loaded_and_not_deleted_meanwhile(api: httpx.Client) -> None:
    def state() -> str:
        models = api.get("/admin/status").json()["models"]
        return next(str(model["state"]) for model in models if model["name"] == "test/one-at-a-time")

    api.post("/admin/models/test/one-at-a-time/unload")
    wait_for(lambda: state() == "cold", "the model to be unloaded")
    version = version_of(api, "test/one-at-a-time")
    assert deployment(
        api, "resident", model="test/one-at-a-time", version=version, min_instances=1
    ).is_success
    wait_for(lambda: state() == "ready", "the model to be loaded")
    refused = api.delete("/v1/deployments/appliance/resident")
    assert 400 <= refused.status_code < 500
    assert refused.json()["detail"]
    # Or no other model could ever have the whole machine.
    assert api.patch("/v1/deployments/appliance/resident", json={"min_instances": 0}).is_success


def test_demand_is_met_with_instances_up_to_the_most(api: httpx.Client) -> None:
    version = version_of(api, "test/scaled")
    made = deployment(api, "scaled", model="test/scaled", version=version, max_instances=3)
    assert made.is_success
    path = "/v1/deployments/appliance/scaled/predictions"
    *busy, waiting = [api.post(path, json={"input": {"delay": delay}}).json() for delay in (600, 600, 600, 0)]

    def running() -> int:
        found = [api.get(record["urls"]["get"]).json() for record in busy]
        return sum(record["status"] == "processing" for record in found)

    wait_for(lambda: running() == 3, "three at once")
    models = api.get("/admin/status").json()["models"]
    assert [model["instances"] for model in models if model["name"] == "test/scaled"] == [3]
    assert api.get(waiting["urls"]["get"]).json()["status"] == "starting"
    api.post(busy[1]["urls"]["cancel"])
    assert ended(api, waiting)["status"] == "succeeded"
    assert running() == 2
    for record in busy:
        api.post(record["urls"]["cancel"])


def test_an_update_fails_no_prediction(api: httpx.Client, appliance: Appliance) -> None:
    deployment(api, "rolling")
    other = version_of(api, "test/one-at-a-time")
    statuses = []
    for turn in range(10):
        body = {"input": {"text": str(turn)}}
        made = api.post("/v1/deployments/appliance/rolling/predictions", json=body).json()
        change = {"model": "test/one-at-a-time", "version": other}
        if turn % 2:
            change = {"model": "appliance/echo", "version": version_of(api)}
        assert api.patch("/v1/deployments/appliance/rolling", json=change).is_success
        statuses.append(ended(api, made)["output"])
    assert statuses == [str(turn) for turn in range(10)]


def test_training_data_is_checked_line_by_line(api: httpx.Client, trained: Trained, tmp_path: Path) -> None:
    data = example_file(tmp_path, [LINES[0], {"prompt": "only"}])
    uploaded = api.post("/v1/files", files={"content": data.read_bytes()}).json()
    record = train(api, uploaded["urls"]["get"]).json()
    wait_for(lambda: api.get(f"/v1/trainings/{record['id']}").json()["status"] == "failed", "the end")
    assert "line 2" in api.get(f"/v1/trainings/{record['id']}").json()["error"]
