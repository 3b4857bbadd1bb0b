"""Row A23, and what follows from it: models that call models, as one prediction."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.e2e.clients import LANGUAGE_MODEL
from tests.e2e.test_conformance_predictions import create, ended, get
from tests.support.appliance_process import Appliance, fetch, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.models("cog")]

Call = tuple[str, dict[str, Any]]


def call(api: httpx.Client, *calls: Call, **input: Any) -> dict[str, Any]:
    """A prediction of the project that calls others, as it was created."""
    return create(api, "cog/caller", calls=json.dumps(calls), **input)


def part(api: httpx.Client, id: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/v1/predictions/{id}").json()
    return found


def ran(api: httpx.Client, *calls: Call, **input: Any) -> dict[str, Any]:
    return ended(api, call(api, *calls, **input))


def test_a23_a_project_calls_other_models_as_whoever_called_it(
    api: httpx.Client, appliance: Appliance
) -> None:
    question = {"prompt": "What is the capital of France?", "temperature": 0, "max_tokens": 20}
    embeddings = "appliance/all-minilm-l6-v2"
    whole = ran(
        api,
        (LANGUAGE_MODEL, question),
        (embeddings, {"texts": json.dumps(["a circle", "a ball"])}),
        ("appliance/echo", {"text": "the third"}),
    )
    assert whole["status"] == "succeeded", whole
    words, vectors, said = whole["output"]["outputs"]
    assert "Paris" in "".join(words)
    assert [len(vector) for vector in vectors] == [384, 384]
    assert said == "the third"
    parts = [part(api, id) for id in whole["parts"]]
    assert [each["model"] for each in parts] == [LANGUAGE_MODEL, embeddings, "appliance/echo"]
    assert {each["parent"] for each in parts} == {whole["id"]}
    listed = api.get("/v1/predictions", params={"parent": whole["id"]}).json()["results"]
    assert [each["id"] for each in listed] == whole["parts"][::-1]
    log = (appliance.home / "logs" / "appliance.log").read_text()
    assert all(f"{id} (child of {whole['id']})" in log for id in whole["parts"])


def test_the_next_prediction_of_the_same_process_has_a_token_of_its_own(
    api: httpx.Client, appliance: Appliance
) -> None:
    tokens = []
    for text in ("one", "two"):
        whole = ran(api, ("appliance/echo", {"text": text}), tell=True)
        assert whole["status"] == "succeeded", whole
        assert whole["output"]["outputs"] == [text]
        tokens.append(whole["output"]["token"])
    assert len(set(tokens)) == 2
    for token in tokens:  # each died with its prediction
        headers = {"Authorization": f"Bearer {token}"}
        answer = fetch(f"{appliance.url}/v1/account", headers=headers)
        assert answer.status_code == 401


def test_no_token_is_written_down(api: httpx.Client, appliance: Appliance) -> None:
    whole = ran(api, ("appliance/echo", {"text": "x"}))
    assert whole["status"] == "succeeded", whole
    mark = f"apl_run_{whole['id']}"
    assert mark not in json.dumps([whole, api.get("/v1/predictions").json()])
    for file in [*appliance.home.rglob("*.db*"), *appliance.home.rglob("*.log")]:
        assert mark.encode() not in file.read_bytes(), file


def test_a_part_that_fails_is_the_projects_business(api: httpx.Client) -> None:
    broken: Call = ("appliance/echo", {"fail": "out of ideas"})
    caught = ran(api, broken, ("appliance/echo", {"text": "on"}), catch=True)
    assert caught["output"]["outputs"] == [{"error": "out of ideas"}, "on"]
    not_caught = ran(api, broken)
    assert (not_caught["status"], not_caught["error"]) == ("failed", "out of ideas")


def test_cancelling_the_whole_cancels_its_parts(api: httpx.Client) -> None:
    whole = call(api, ("test/one-at-a-time", {"delay": 600}))
    wait_for(lambda: get(api, whole).get("parts"), "the part")
    asked = part(api, get(api, whole)["parts"][0])
    wait_for(lambda: get(api, asked)["status"] == "processing", "the part to run")
    assert api.post(f"/v1/predictions/{whole['id']}/cancel").json()["status"] == "canceled"
    assert ended(api, asked)["status"] == "canceled"
    assert ran(api, ("test/one-at-a-time", {"text": "free again"}))["status"] == "succeeded"


def test_what_could_only_wait_for_ever_fails_at_once(api: httpx.Client) -> None:
    nested = ran(api, ("cog/caller", {}), catch=True)
    assert "model cog/caller has concurrency 1" in nested["output"]["outputs"][0]["error"]
    no_room = ran(api, ("test/whole-machine", {}), catch=True)
    assert no_room["status"] == "succeeded", no_room
    error = no_room["output"]["outputs"][0]["error"]
    assert "test/whole-machine" in error
    assert "cog/caller" in error


def test_a_part_goes_before_what_nobody_waits_for(api: httpx.Client) -> None:
    others = [create(api, "test/one-at-a-time", delay=600) for _ in range(3)]
    whole = call(api, ("test/one-at-a-time", {"text": "in between"}))
    wait_for(lambda: get(api, whole).get("parts"), "the part")
    api.post(f"/v1/predictions/{others[0]['id']}/cancel")
    assert ended(api, whole)["status"] == "succeeded"
    assert get(api, others[-1])["status"] == "starting"
    for other in others:
        api.post(f"/v1/predictions/{other['id']}/cancel")
