"""Deployments: numbered releases, what they keep loaded, and the predictions made through them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.support.api_client import Api, services_of
from tests.support.engine_bench import Bench


def wished(bench: Bench, **changes: Any) -> dict[str, Any]:
    return {
        "name": "my-app",
        "model": "test/echo",
        "version": bench.echo.version,
        "hardware": "cpu",
        "min_instances": 0,
        "max_instances": 1,
        **changes,
    }


async def deployed(api: Api, bench: Bench, **changes: Any) -> dict[str, Any]:
    reply = await api.post("/v1/deployments", json=wished(bench, **changes))
    assert reply.status_code == 200, reply.text
    deployment: dict[str, Any] = reply.json()
    return deployment


async def state(api: Api, model: str) -> str:
    models = (await api.get("/admin/status")).json()["models"]
    return next(str(found["state"]) for found in models if found["name"] == model)


async def until(api: Api, model: str, wanted: str) -> None:
    deadline = time.monotonic() + 60
    while await state(api, model) != wanted:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_what_was_said_comes_back(api: Api, bench: Bench) -> None:
    made = await deployed(api, bench)
    release = made["current_release"]
    assert (made["owner"], made["name"], release["number"]) == ("me", "my-app", 1)
    assert (release["model"], release["version"]) == ("test/echo", bench.echo.version)
    assert release["configuration"] == {"hardware": "cpu", "min_instances": 0, "max_instances": 1}
    assert (release["created_by"]["username"], release["created_by"]["name"]) == ("me", "My Company")
    assert (await api.get("/v1/deployments/me/my-app")).json() == made
    assert (await api.get("/v1/deployments")).json()["results"] == [made]


async def test_every_change_is_a_release(api: Api, bench: Bench) -> None:
    await deployed(api, bench)
    changes: list[dict[str, Any]] = [
        {"max_instances": 3},
        {"hardware": "gpu-t4"},
        {"model": "test/stream", "version": bench.stream.version},
    ]
    for number, change in enumerate(changes, 2):
        reply = await api.patch("/v1/deployments/me/my-app", json=change)
        assert (reply.status_code, reply.json()["current_release"]["number"]) == (200, number)
    unchanged = await api.patch("/v1/deployments/me/my-app", json={"hardware": "gpu-t4"})
    assert unchanged.json()["current_release"]["number"] == 4


async def test_one_that_wants_an_instance_keeps_its_model_loaded(api: Api, bench: Bench) -> None:
    assert await state(api, "test/echo") == "cold"
    await deployed(api, bench, min_instances=1)
    await until(api, "test/echo", "ready")
    await api.patch("/v1/deployments/me/my-app", json={"min_instances": 0})
    assert (await api.delete("/v1/deployments/me/my-app")).status_code == 204
    assert (await api.get("/v1/deployments/me/my-app")).status_code == 404


async def test_a_prediction_through_it(api: Api, bench: Bench) -> None:
    await deployed(api, bench)
    reply = await api.post(
        "/v1/deployments/me/my-app/predictions", json={"input": {"text": "x"}}, headers={"Prefer": "wait"}
    )
    record = reply.json()
    assert (reply.status_code, record["output"], record["deployment"]) == (201, "x", "me/my-app")
    assert (await api.get(f"/v1/predictions/{record['id']}")).json()["deployment"] == "me/my-app"
    refused = await api.delete("/v1/deployments/me/my-app")
    assert (refused.status_code, "15 minutes" in refused.json()["detail"]) == (400, True)


async def test_one_that_is_off_takes_no_predictions(api: Api, bench: Bench) -> None:
    await deployed(api, bench, max_instances=0)
    reply = await api.post("/v1/deployments/me/my-app/predictions", json={"input": {}})
    assert (reply.status_code, "max_instances" in reply.json()["detail"]) == (400, True)


async def test_one_that_is_online_is_not_deleted(api: Api, bench: Bench) -> None:
    await deployed(api, bench, min_instances=1)
    reply = await api.delete("/v1/deployments/me/my-app")
    assert (reply.status_code, "min_instances" in reply.json()["detail"]) == (400, True)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"min_instances": 6, "max_instances": 20}, "min_instances"),
        ({"min_instances": -1}, "min_instances"),
        ({"max_instances": 21}, "max_instances"),
        ({"min_instances": 2, "max_instances": 1}, "max_instances"),
        ({"max_instances": "1"}, "max_instances"),
        ({"name": "My App"}, "name"),
        ({"version": "latest"}, "version"),
        ({"hardware": None}, ""),
        ({"surprise": 1}, ""),
    ],
)
async def test_what_cannot_be_is_named(api: Api, bench: Bench, changes: dict[str, Any], field: str) -> None:
    reply = await api.post("/v1/deployments", json=wished(bench, **changes))
    assert reply.status_code == 422
    assert reply.json()["invalid_fields"][0]["field"] == field
    assert (await api.get("/v1/deployments")).json()["results"] == []


async def test_names_are_taken_and_versions_exist(api: Api, bench: Bench) -> None:
    await deployed(api, bench)
    again = await api.post("/v1/deployments", json=wished(bench))
    assert (again.status_code, again.json()["invalid_fields"][0]["field"]) == (422, "name")
    for changes in ({"version": "0" * 64}, {"model": "test/stream"}, {"model": "no/where"}):
        reply = await api.post("/v1/deployments", json=wished(bench, name="other", **changes))
        assert (reply.status_code, reply.json()["title"]) == (422, "Invalid version or not permitted")


async def test_deployments_of_others_are_not_there(api: Api, bench: Bench) -> None:
    await deployed(api, bench)
    async with Api(api.services, "other") as stranger:
        assert (await stranger.get("/v1/deployments")).json()["results"] == []
        for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/predictions")):
            reply = await stranger.request(method, f"/v1/deployments/me/my-app{path}", json={"input": {}})
            assert reply.status_code == 404, (method, path)


async def instances(api: Api, model: str = "test/echo") -> int:
    models = (await api.get("/admin/status")).json()["models"]
    return next(int(found["instances"]) for found in models if found["name"] == model)


async def processing(api: Api, records: list[dict[str, Any]]) -> int:
    found = [(await api.get(f"/v1/predictions/{record['id']}")).json() for record in records]
    return sum(record["status"] == "processing" for record in found)


async def test_demand_is_met_with_instances_up_to_the_most(api: Api, bench: Bench) -> None:
    await deployed(api, bench, max_instances=3)
    body = {"input": {"delay": 30}}
    records = []
    for number in range(7):  # two at a time on each
        records.append((await api.post("/v1/deployments/me/my-app/predictions", json=body)).json())
        deadline = time.monotonic() + 60
        while await processing(api, records) < min(number + 1, 6):
            assert time.monotonic() < deadline, number
            await asyncio.sleep(0.005)
    assert await instances(api) == 3
    await asyncio.sleep(0.05)
    assert await processing(api, records) == 6
    await api.post(f"/v1/predictions/{records.pop(3)['id']}/cancel")  # wherever a slot gets free
    deadline = time.monotonic() + 60
    while await processing(api, records) < 6:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    for record in records:
        await api.post(f"/v1/predictions/{record['id']}/cancel")


async def test_one_instance_is_all_without_a_deployment(api: Api) -> None:
    records = [await api.create(delay=30) for _ in range(4)]
    deadline = time.monotonic() + 60
    while await processing(api, records) < 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    assert (await processing(api, records), await instances(api)) == (2, 1)
    for record in records:
        await api.post(f"/v1/predictions/{record['id']}/cancel")


async def test_as_many_are_kept_as_it_says_and_go_when_it_does_not(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.gateway.engine.instances.IDLE", 0.05)
    await deployed(api, bench, min_instances=3, max_instances=3)

    async def become(count: int) -> None:
        deadline = time.monotonic() + 60
        while await instances(api) != count:
            assert time.monotonic() < deadline, await instances(api)
            await asyncio.sleep(0.005)

    await become(3)
    await api.patch("/v1/deployments/me/my-app", json={"min_instances": 0, "max_instances": 1})
    await become(1)
    assert (await api.ended(await api.create(text="x")))["output"] == "x"


async def test_what_ran_on_any_instance_is_taken_up_again(api: Api, bench: Bench) -> None:
    await deployed(api, bench, max_instances=2)
    for _ in range(4):
        await api.create(delay=0.3)
    await bench.restart()
    async with Api(services_of(bench)) as again:
        records = (await again.get("/v1/predictions")).json()["results"]
        assert [(await again.ended(record))["status"] for record in records] == ["succeeded"] * 4


async def test_they_outlive_a_restart(api: Api, bench: Bench) -> None:
    made = await deployed(api, bench, min_instances=1)
    await bench.restart()
    services = services_of(bench)
    await services.engine.deployed()
    async with Api(services) as again:
        assert (await again.get("/v1/deployments/me/my-app")).json() == made
        await until(again, "test/echo", "ready")
