"""Rows M: models, versions, collections, search, hardware."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from replicate.client import Client
from replicate.pagination import paginate

from tests.e2e.clients import LANGUAGE_MODEL, beta, node
from tests.e2e.conftest import command
from tests.support.appliance_process import Appliance

pytestmark = pytest.mark.e2e

NEW = {"owner": "appliance", "visibility": "private", "hardware": "cpu"}


@pytest.fixture
def model(api: httpx.Client) -> Iterator[str]:
    """A private model of ours, without versions."""
    name = f"made-{time.monotonic_ns()}"
    assert api.post("/v1/models", json={**NEW, "name": name}).status_code == 201
    yield name
    api.delete(f"/v1/models/appliance/{name}")


def test_m1_m2_m3_lists_end(api: httpx.Client, appliance: Appliance) -> None:
    pages = [api.get("/v1/models").json()]
    while pages[-1]["next"] is not None:
        assert re.fullmatch(rf"{appliance.url}/v1/models\?cursor=[\w%-]+", pages[-1]["next"])
        pages.append(api.get(pages[-1]["next"]).json())
    assert pages[0]["previous"] is None
    names = beta(appliance, "print(json.dumps([model.name for model in replicate.models.list()]))")
    assert names == [model["name"] for page in pages for model in page["results"]]
    for number in range(101):
        api.post("/v1/predictions", json={"version": "appliance/echo", "input": {"text": str(number)}})
    first = api.get("/v1/predictions").json()
    assert re.fullmatch(rf"{appliance.url}/v1/predictions\?cursor=[\w%-]+", first["next"])
    count = node(
        appliance,
        """
        let count = 0;
        for await (const page of replicate.paginate(replicate.predictions.list)) count += page.length;
        console.log(JSON.stringify(count));
        """,
    )
    assert count > 100


def test_m4_m5_versions_and_examples_of_a_list(
    api: httpx.Client, official: Client, appliance: Appliance
) -> None:
    body = {"version": "appliance/echo", "input": {"text": "shown"}}
    shown = api.post("/v1/predictions", json=body, headers={"Prefer": "wait"}).json()
    command(appliance, "example", "appliance/echo", shown["id"])
    pages = paginate(official.models.list)
    found = {f"{model.owner}/{model.name}": model for page in pages for model in page.results}
    for model in found.values():
        if model.latest_version is not None:
            assert model.latest_version.cog_version
            assert model.latest_version.openapi_schema
    example = found["appliance/echo"].default_example
    assert example is not None
    assert (example.id, example.output, example.status) == (shown["id"], "shown", "succeeded")
    assert example.version
    assert found[LANGUAGE_MODEL].default_example is None


def test_m6_orders(api: httpx.Client, appliance: Appliance) -> None:
    def names(**order: str) -> list[str]:
        reply = api.get("/v1/models", params=order)
        assert reply.status_code == 200
        page = reply.json()
        found = [model["name"] for model in page["results"]]
        while page["next"]:
            page = api.get(page["next"]).json()
            found += [model["name"] for model in page["results"]]
        return found

    for key in ("model_created_at", "latest_version_created_at"):
        oldest = names(sort_by=key, sort_direction="asc")
        assert names(sort_by=key, sort_direction="desc") == oldest[::-1]
    assert api.get("/v1/models", params={"sort_by": "beauty"}).status_code == 422
    asked = 'replicate.models.list(sort_by="model_created_at", sort_direction="asc")'
    assert beta(appliance, f"print(json.dumps([model.name for model in {asked}]))") == names(
        sort_by="model_created_at", sort_direction="asc"
    )


def test_m7_m8_m9_searches_as_every_client_sends_them(
    api: httpx.Client, official: Client, appliance: Appliance
) -> None:
    assert [f"{found.owner}/{found.name}" for found in official.models.search("smollm2")] == [LANGUAGE_MODEL]
    script = "console.log(JSON.stringify((await replicate.models.search('smollm2')).results.length))"
    assert node(appliance, script) == 1
    script = "print(json.dumps([model.name for model in replicate.models.search(body='smollm2')]))"
    assert beta(appliance, script) == [LANGUAGE_MODEL.split("/")[1]]
    for content, kind in (
        ("smollm2", "text/plain"),
        ('"smollm2"', "text/plain"),
        ('"smollm2"', "application/json"),
    ):
        reply = api.request("QUERY", "/v1/models", content=content, headers={"content-type": kind})
        assert len(reply.json()["results"]) == 1


def test_m10_m11_search(api: httpx.Client, stranger: httpx.Client, appliance: Appliance) -> None:
    found = api.get("/v1/search", params={"query": "smollm2", "limit": 1}).json()
    assert found["query"] == "smollm2"
    assert found["models"][0]["model"]["name"] == LANGUAGE_MODEL.split("/")[1]
    assert found["models"][0]["metadata"]["score"] > 0
    assert api.get("/v1/search", params={"query": "talk"}).json()["collections"][0]["slug"] == "talkers"
    without = api.get("/v1/search")
    assert (without.status_code, without.json()["detail"]) == (400, 'Query parameter "query" is required')
    for limit in ("0", "51", "x"):
        assert api.get("/v1/search", params={"query": "x", "limit": limit}).status_code == 422
    assert stranger.get("/v1/search", params={"query": "smollm2"}).status_code == 200
    script = "print(json.dumps(len(replicate.Replicate().search(query='smollm2').models)))"
    assert beta(appliance, script) == 1


def test_m12_a_model_is_made_once(api: httpx.Client, official: Client, appliance: Appliance) -> None:
    made = official.models.create(
        owner="appliance", name="made-by-python", visibility="private", hardware="cpu"
    )
    assert (made.owner, made.name, made.latest_version) == ("appliance", "made-by-python", None)
    again = api.post("/v1/models", json={**NEW, "name": "made-by-python"})
    assert again.status_code == 422
    script = """
made = replicate.models.create(owner="appliance", name="made-by-beta", visibility="private", hardware="cpu")
print(json.dumps(made.name))
"""
    assert beta(appliance, script) == "made-by-beta"


def test_m13_what_is_said_of_it(api: httpx.Client, appliance: Appliance, model: str) -> None:
    changed = beta(
        appliance,
        f"""
said = dict(description="Better", readme="# Hello", github_url="https://github.com/a",
            paper_url="https://arxiv.org/a", weights_url="https://a.org/w", license_url="https://a.org/l")
model = replicate.models.update(model_owner="appliance", model_name="{model}", **said)
print(json.dumps([model.description, model.github_url, model.paper_url, model.license_url]))
""",
    )
    assert changed == ["Better", "https://github.com/a", "https://arxiv.org/a", "https://a.org/l"]
    assert api.patch(f"/v1/models/appliance/{model}", json={"description": "Best"}).status_code == 200
    assert api.get(f"/v1/models/appliance/{model}").json()["description"] == "Best"
    assert api.get(f"/v1/models/appliance/{model}/readme").text == "# Hello"


def test_m14_m15_deleting(api: httpx.Client, model: str) -> None:
    refused = api.delete(f"/v1/models/{LANGUAGE_MODEL}")
    assert 400 <= refused.status_code < 500
    assert refused.json()["detail"]
    gone = api.delete(f"/v1/models/appliance/{model}")
    assert (gone.status_code, gone.content) == (204, b"")


def test_m16_readmes(api: httpx.Client, appliance: Appliance) -> None:
    reply = api.get("/v1/models/test/stream/readme")
    assert (reply.text, reply.headers["content-type"]) == (
        "# Streams\n\nWord by word.\n",
        "text/plain; charset=utf-8",
    )
    assert api.get("/v1/models/test/files/readme").status_code == 404
    script = "replicate.models.readme.get(model_owner='test', model_name='stream')"
    assert "Word by word" in beta(appliance, f"print(json.dumps({script}))")


def test_m17_examples(api: httpx.Client, appliance: Appliance) -> None:
    body = {"version": "test/one-at-a-time", "input": {"text": "an example"}}
    shown = api.post("/v1/predictions", json=body, headers={"Prefer": "wait"}).json()
    command(appliance, "example", "test/one-at-a-time", shown["id"])
    (found,) = api.get("/v1/models/test/one-at-a-time/examples").json()["results"]
    assert found["output"] == "an example"
    script = "replicate.models.examples.list(model_owner='test', model_name='one-at-a-time')"
    assert beta(appliance, f"print(json.dumps([each.id for each in {script}]))") == [shown["id"]]


def test_m18_m20_m24_versions(api: httpx.Client, official: Client) -> None:
    version = official.models.get(LANGUAGE_MODEL).latest_version
    assert version is not None
    listed = official.models.get(LANGUAGE_MODEL).versions.list().results
    assert [each.id for each in listed] == [version.id]
    one = official.models.get(LANGUAGE_MODEL).versions.get(version.id)
    assert one.id == version.id
    assert [int(part) for part in one.cog_version.split(".")] >= [0, 3, 9]
    found: dict[str, Any] = api.get(f"/v1/models/{LANGUAGE_MODEL}/versions/{version.id}").json()
    assert found["openapi_schema"]["components"]["schemas"]["Input"]
    assert api.get(f"/v1/models/{LANGUAGE_MODEL}/versions").json()["results"][0] == found
    assert api.get(f"/v1/models/{LANGUAGE_MODEL}/versions/{'0' * 64}").status_code == 404


def test_m21_collections(api: httpx.Client, official: Client) -> None:
    (collection,) = official.collections.list().results
    found = official.collections.get("talkers")
    assert (collection.name, found.description) == ("Talkers", "All that talk")
    assert found.models is not None
    assert [f"{model.owner}/{model.name}" for model in found.models] == [LANGUAGE_MODEL]
    assert found.models[0].latest_version is not None
    assert api.get("/v1/collections").json()["results"][0]["slug"] == "talkers"
    assert "models" in api.get("/v1/collections/talkers").json()
    assert api.get("/v1/collections/none").status_code == 404


def test_m22_hardware(api: httpx.Client, official: Client) -> None:
    found = api.get("/v1/hardware").json()
    assert isinstance(found, list)
    assert all(set(each) == {"name", "sku"} for each in found)
    assert {hardware.sku for hardware in official.hardware.list()} == {each["sku"] for each in found}


def test_m23_the_webhook_secret(api: httpx.Client, official: Client, appliance: Appliance) -> None:
    key = api.get("/v1/webhooks/default/secret").json()["key"]
    assert key.startswith("whsec_")
    assert "_" not in key.removeprefix("whsec_")
    assert official.webhooks.default.secret().key == key
    assert beta(appliance, "print(json.dumps(replicate.webhooks.default.secret.get().key))") == key
