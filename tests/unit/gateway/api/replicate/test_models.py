"""Models that are made through the API, and examples."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from appliance.protocols.response_types import ModelResponse
from tests.support.api_client import Api
from tests.support.engine_bench import Bench

NEW = {"owner": "me", "name": "mine", "visibility": "public", "hardware": "cpu"}


async def made(api: Api, **changes: Any) -> dict[str, Any]:
    reply = await api.post("/v1/models", json=NEW | changes)
    assert reply.status_code == 201, reply.text
    model: dict[str, Any] = reply.json()
    return model


async def test_a_model_is_made(api: Api) -> None:
    model = await made(api, description="All mine", github_url="https://github.com/me/mine")
    assert (model["owner"], model["name"], model["latest_version"]) == ("me", "mine", None)
    assert (model["description"], model["run_count"], model["is_official"]) == ("All mine", 0, False)
    assert (await api.get("/v1/models/me/mine")).json() == model
    assert model in (await api.get("/v1/models")).json()["results"]
    assert (await api.get("/v1/models/me/mine/versions")).json()["results"] == []
    assert (await api.post("/v1/models/me/mine/predictions", json={"input": {}})).status_code == 404
    found = await api.request("QUERY", "/v1/models", content="all mine")
    assert [each["name"] for each in found.json()["results"]] == ["mine"]


async def test_plain_text_is_taken_where_replicate_takes_it(api: Api) -> None:
    given = {
        "hardware": "gpu-a100-large-8x, or whatever there is by then" * 10,
        "github_url": "github.com/me/mine",
        "paper_url": "/papers/ours: the second",
        "license_url": "",
        "cover_image_url": "HTTPS://pictures.example.org/a b.png",
    }
    model = await made(api, **given)
    del given["hardware"]
    assert {key: model[key] for key in given} == given
    assert (await api.post("/v1/models", json=NEW | {"name": "other", "hardware": ""})).status_code == 201


async def test_models_come_in_pages(api: Api) -> None:
    for number in range(60):
        await made(api, name=f"m{number:02}", description="common" if number % 2 else "rare")

    async def pages(method: str, address: str, content: str | None, key: str) -> list[list[str]]:
        found = []
        following: str | None = address
        while following:
            page = (await api.request(method, following, content=content)).json()
            found.append([f"{one['owner']}/{one['name']}" for one in page["results"]])
            following = page[key]
            last.append(page)
        return found

    last: list[dict[str, Any]] = []
    sorted_by = "/v1/models?sort_by=model_created_at&sort_direction=asc"
    forwards = await pages("GET", sorted_by, None, "next")
    assert [len(page) for page in forwards] == [25, 25, 14]  # four are the bench's
    names = [name for page in forwards for name in page]
    assert sorted(names) == sorted(set(names))
    assert [name for name in names if name.startswith("me/")] == [f"me/m{number:02}" for number in range(60)]
    assert (last[0]["previous"], last[-1]["next"]) == (None, None)
    assert "sort_direction=asc" in last[0]["next"]
    backwards = await pages("GET", last[-1]["previous"], None, "previous")
    assert backwards == [forwards[1], forwards[0]]
    found = await pages("QUERY", "/v1/models", "common", "next")
    assert [len(page) for page in found] == [25, 5]
    assert len({name for page in found for name in page}) == 30


async def test_a_page_goes_on_where_the_last_model_was_that_is_gone(api: Api) -> None:
    for number in range(30):
        await made(api, name=f"m{number:02}", visibility="public")
    first = (await api.get("/v1/models?sort_by=model_created_at")).json()
    api.services.catalogue.remove(f"me/{first['results'][-1]['name']}")
    second = (await api.get(first["next"])).json()
    shown = [one["name"] for one in first["results"] + second["results"]]
    assert len(shown) == len(set(shown)) == 34
    for cursor in ("x", "f_8AAAAAAAA", "AH_wAAAAAAAA"):
        reply = await api.get("/v1/models", params={"cursor": cursor})
        assert (reply.status_code, reply.json()["detail"]) == (404, "Invalid cursor"), cursor


async def test_a_name_is_taken_once(api: Api) -> None:
    await made(api)
    again = await api.post("/v1/models", json=NEW)
    assert (again.status_code, again.json()["invalid_fields"][0]["field"]) == (422, "name")
    configured = await api.post("/v1/models", json=NEW | {"owner": "test", "name": "echo"})
    assert configured.status_code == 403


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Mine!"}, "name"),
        ({"visibility": "secret"}, "visibility"),
        ({"hardware": 1}, "hardware"),
        ({"github_url": "javascript:alert(1)"}, "github_url"),
        ({"cover_image_url": " JavaScript:alert(1)"}, "cover_image_url"),
        ({"paper_url": "data:text/html,x"}, "paper_url"),
        ({"visibility": None}, ""),
        ({"latest_version": "x"}, ""),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_cannot_be_is_named(shared_api: Api, changes: dict[str, Any], field: str) -> None:
    reply = await shared_api.post("/v1/models", json=NEW | changes)
    assert (reply.status_code, reply.json()["invalid_fields"][0]["field"]) == (422, field)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/deployments"])
async def test_a_name_that_ends_in_a_line_feed_is_refused(api: Api, path: str) -> None:
    body: dict[str, Any] = dict(NEW)
    if path == "/v1/deployments":
        body = {"model": "test/echo", "version": "0" * 64, "hardware": "cpu"}
        body |= {"min_instances": 0, "max_instances": 1}
    reply = await api.post(path, json={**body, "name": "mine\n"})
    assert (reply.status_code, [each["field"] for each in reply.json()["invalid_fields"]]) == (422, ["name"])


async def test_what_is_said_of_it_changes_and_stays(api: Api, bench: Bench) -> None:
    await made(api)
    said = {
        "description": "Better",
        "readme": "# Read *me*",
        "github_url": "https://github.com/a",
        "paper_url": "https://arxiv.org/a",
        "weights_url": "https://example.org/w",
        "license_url": "https://example.org/l",
    }
    for key, value in said.items():
        reply = await api.patch("/v1/models/me/mine", json={key: value})
        assert reply.status_code == 200
        if key != "readme":
            assert reply.json()[key] == value
    readme = await api.get("/v1/models/me/mine/readme")
    assert (readme.text, readme.headers["content-type"]) == ("# Read *me*", "text/plain; charset=utf-8")
    (stored,) = await bench.store.registry.models()
    assert {key: getattr(stored, key) for key in said} == said
    assert (await api.patch("/v1/models/me/mine", json={"name": "other"})).status_code == 422


async def test_what_is_configured_is_changed_in_the_config(api: Api) -> None:
    for reply in (
        await api.patch("/v1/models/test/echo", json={"description": "x"}),
        await api.delete("/v1/models/test/echo"),
    ):
        assert (reply.status_code, "models.yaml" in reply.json()["detail"]) == (400, True)


async def test_who_may_see_change_and_delete(api: Api) -> None:
    await made(api)
    await made(api, name="hidden", visibility="private")
    async with Api(api.services, "other") as stranger:
        assert (await stranger.get("/v1/models/me/mine")).status_code == 200
        assert (await stranger.get("/v1/models/me/hidden")).status_code == 404
        assert (await stranger.patch("/v1/models/me/mine", json={"description": "x"})).status_code == 403
        assert (await stranger.delete("/v1/models/me/mine")).status_code == 403
        assert (await stranger.delete("/v1/models/me/hidden")).status_code == 404
    public = await api.delete("/v1/models/me/mine")
    assert (public.status_code, "private" in public.json()["detail"]) == (400, True)
    assert ((reply := await api.delete("/v1/models/me/hidden")).status_code, reply.content) == (204, b"")
    assert (await api.get("/v1/models/me/hidden")).status_code == 404
    await made(api, name="hidden")  # the name is free again


async def test_examples_show_what_a_model_can_do(api: Api, bench: Bench) -> None:
    shown = await api.ended(await api.create(text="look"))
    model = (await api.get("/v1/models/test/echo")).json()
    assert model["default_example"] is None
    chosen = await api.put(f"/admin/models/test/echo/examples/{shown['id']}")
    assert chosen.status_code == 204
    model = (await api.get("/v1/models/test/echo")).json()
    assert (model["default_example"]["id"], model["default_example"]["output"]) == (shown["id"], "look")
    assert model in (await api.get("/v1/models")).json()["results"]
    (listed,) = (await api.get("/v1/models/test/echo/examples")).json()["results"]
    assert listed == shown
    assert (await bench.store.remove_data(2e9 * 2, 10)).ids == []  # kept while it is an example
    assert (await api.delete(f"/admin/models/test/echo/examples/{shown['id']}")).status_code == 204
    assert (await api.get("/v1/models/test/echo/examples")).json()["results"] == []
    assert (await bench.store.remove_data(2e9 * 2, 10)).ids == [shown["id"]]


async def test_what_is_no_example(api: Api) -> None:
    running = await api.create(delay=30)
    failed = await api.ended(await api.create(fail="no"))
    for model, id, status in (
        ("test/echo", running["id"], 400),
        ("test/echo", failed["id"], 400),
        ("test/stream", failed["id"], 404),
        ("test/echo", "nothing", 404),
        ("no/model", failed["id"], 404),
    ):
        assert (await api.put(f"/admin/models/{model}/examples/{id}")).status_code == status


async def test_a_model_made_without_optional_keys_has_them_all(api: Api) -> None:
    created = await api.post("/v1/models", json=NEW)
    assert created.status_code == 201
    for reply in (created, await api.get("/v1/models/me/mine")):
        assert msgspec.json.decode(reply.content, type=ModelResponse).cover_image_url is None
