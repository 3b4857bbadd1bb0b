"""What operators see and do through the API, and that nobody else does."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from appliance.config import Config, redact
from appliance.domain import token
from appliance.domain.prediction import Prediction, Status, Webhook
from appliance.domain.token import Scope, Token
from appliance.machine.disk import Storage
from appliance.protocols import serializers
from appliance.store import predictions
from tests.support.api_client import Api
from tests.support.engine_bench import MIB, Bench

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
async def yours(api: Api, bench: Bench) -> AsyncIterator[Api]:
    """A client of another owner, whose token may run predictions and nothing more."""
    await bench.store.add_token(
        Token(id="run", name="run", owner="you", digest=token.digest("run"), created_at=0, scope=Scope.RUN)
    )
    async with Api(api.services, "run") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/admin/tokens", None),
        ("POST", "/admin/tokens", {"name": "x"}),
        ("DELETE", "/admin/tokens/first", None),
        ("GET", "/admin/config", None),
        ("GET", "/admin/machine", None),
        ("GET", "/admin/history", None),
        ("GET", "/admin/models/test/echo/logs", None),
        ("GET", "/admin/models/test/echo/logs/events", None),
        ("POST", "/admin/webhooks/secret", {}),
        ("POST", "/admin/models/test/echo/pin", None),
        ("POST", "/admin/models/test/echo/unpin", None),
        ("GET", "/admin/predictions?owner=me", None),
        ("GET", "/admin/catalogue", None),
        ("GET", "/admin/hub?query=x", None),
        ("POST", "/admin/proposals", {"source": "/"}),
        ("GET", "/admin/additions", None),
        ("POST", "/admin/additions", {"source": "/"}),
        ("GET", "/admin/additions/x", None),
        ("GET", "/admin/additions/x/events", None),
        ("POST", "/admin/additions/x/cancel", None),
        ("GET", "/admin/models/test/echo/update", None),
        ("POST", "/admin/models/test/echo/update", None),
        ("DELETE", "/admin/models/test/echo", None),
        ("GET", "/admin/weights/unused", None),
        ("POST", "/admin/weights/prune", {"paths": []}),
    ],
)
async def test_without_the_scope_there_is_nothing_to_see_or_do(
    yours: Api, bench: Bench, method: str, path: str, body: Any
) -> None:
    reply = await yours.request(method, path, json=body)
    assert (reply.status_code, reply.json()["title"]) == (403, "Permission denied")
    assert "admin" in reply.json()["detail"]
    assert {known.id for known in await bench.store.list_tokens() if known.revoked_at is None} == {
        "first",
        "second",
        "run",
    }
    assert not bench.scheduler.pinned("test/echo")


# -- predictions --------------------------------------------------------------------------------------------


async def test_an_administrator_sees_everyones_predictions_and_others_their_own(api: Api, yours: Api) -> None:
    mine, theirs = await api.create(text="mine"), await yours.create(text="theirs")
    for client, record in ((api, mine), (yours, theirs)):
        await client.ended(record)
    everyone = (await api.get("/admin/predictions")).json()["results"]
    assert [each["id"] for each in everyone] == [theirs["id"], mine["id"]]
    assert [each["owner"] for each in everyone] == ["you", "me"]
    assert not {"input", "output", "logs"} & set(everyone[0])
    assert [each["id"] for each in (await yours.get("/admin/predictions")).json()["results"]] == [
        theirs["id"]
    ]
    own = await yours.get("/admin/predictions", params={"owner": "you"})
    assert [each["id"] for each in own.json()["results"]] == [theirs["id"]]
    assert (await yours.get(f"/admin/predictions/{mine['id']}")).status_code == 404
    found = (await api.get(f"/admin/predictions/{theirs['id']}")).json()
    assert (found["input"], found["output"], found["owner"]) == ({"text": "theirs"}, "theirs", "you")
    assert (found["token"], found["token_name"]) == ("run", "run")
    assert (found["newest_version"], found["example"]) == (True, False)
    assert (await api.get(f"/v1/predictions/{theirs['id']}")).status_code == 404
    assert (await yours.get("/admin/predictions?token=first")).json()["results"] == []


async def test_predictions_are_filtered_and_paged(api: Api, yours: Api, bench: Bench) -> None:
    made = [await api.create(text=str(number)) for number in range(3)]
    failing = await yours.create(text="x", fail="no")
    streamed = (await api.post("/v1/models/test/stream/predictions", json={"input": {"text": "a"}})).json()
    for client, record in (*((api, record) for record in (*made, streamed)), (yours, failing)):
        await client.ended(record)

    async def ids(**parameters: str) -> list[str]:
        reply = await api.get("/admin/predictions", params=parameters)
        assert reply.status_code == 200, reply.text
        return [each["id"] for each in reply.json()["results"]]

    assert await ids(model="test/stream") == [streamed["id"]]
    assert await ids(status="failed") == [failing["id"]]
    assert await ids(owner="you") == [failing["id"]]
    assert await ids(owner="me", status="succeeded", model="test/echo") == [m["id"] for m in made[::-1]]
    assert await ids(type="training") == []
    assert len(await ids(type="prediction")) == 5
    assert await ids(token="run") == [failing["id"]]
    assert await ids(token="first", model="test/stream") == [streamed["id"]]
    assert await ids(created_before=made[1]["created_at"]) == [made[0]["id"]]
    assert await ids(created_after=failing["created_at"], owner="me") == [streamed["id"]]
    assert len(await ids(limit="2")) == 2
    assert len(await ids(slower_than="0")) == 5
    for never in ("10m", "600", "1.5h"):
        assert await ids(slower_than=never) == []
    for wrong in (
        {"status": "lost"},
        {"limit": "101"},
        {"type": "x"},
        {"created_after": "yesterday"},
        {"slower_than": "2 weeks"},
    ):
        assert (await api.get("/admin/predictions", params=wrong)).status_code == 422

    number = 120
    for _ in range(number):
        record = Prediction(
            id=serializers.timestamp(time.time())[::-1] + str(number),
            model="test/many",
            version="v",
            owner="you",
            input={},
            created_at=time.time(),
            stream_token=str(number),
        )
        await bench.store.create(record)
        number += 1
    first = (await api.get("/admin/predictions?model=test/many")).json()
    second = (await api.get(first["next"])).json()
    assert (len(first["results"]), len(second["results"]), second["next"]) == (100, 20, None)
    back = (await api.get(second["previous"])).json()
    assert back["results"] == first["results"]


async def test_an_administrator_cancels_for_others_and_others_only_their_own(api: Api, yours: Api) -> None:
    mine, theirs = await api.create(text="x", delay=30), await yours.create(text="x", delay=30)
    assert (await yours.post(f"/admin/predictions/{mine['id']}/cancel")).status_code == 404
    assert (await api.get(f"/v1/predictions/{mine['id']}")).json()["status"] in {"starting", "processing"}
    ended = (await api.post(f"/admin/predictions/{theirs['id']}/cancel")).json()
    assert (ended["id"], ended["status"]) == (theirs["id"], "canceled")
    assert (await api.post(f"/admin/predictions/{mine['id']}/cancel")).json()["status"] == "canceled"


def record(**changes: Any) -> Prediction:
    return Prediction(
        id="p", model="a/b", version="v", owner="me", input={}, created_at=100.0, stream_token="t"
    ).evolve(**changes)


def phases(shown: Prediction, now: float = 200.0) -> list[tuple[str, float, bool]]:
    return [(each.phase, each.seconds, each.end is None) for each in serializers.timeline(shown, now)]


def test_a_timeline_adds_up_to_the_time_since_it_was_made() -> None:
    waiting = record()
    assert phases(waiting) == [("queued", 100.0, True)]
    warm = waiting.started(110.0, 0.0, None)
    assert phases(warm) == [("queued", 10.0, False), ("running", 90.0, True)]
    cold = waiting.started(110.0, 4.0, None)
    assert phases(cold) == [("queued", 6.0, False), ("loading", 4.0, False), ("running", 90.0, True)]
    over = cold.finished(Status.SUCCEEDED, 130.0)
    assert phases(over)[2] == ("running", 20.0, False)
    assert sum(seconds for _, seconds, _ in phases(over)) == over.metrics["total_time"]
    assert phases(waiting.finished(Status.CANCELED, 120.0)) == [("queued", 20.0, False)]
    again = cold.transition(Status.STARTING)
    assert phases(again) == [("queued", 100.0, True)]


async def test_a_prediction_tells_what_was_sent_of_it(api: Api, bench: Bench) -> None:
    hook = Webhook(f"https://example.org/{HOSTILE}", ("completed",), "http://x")
    told = await bench.engine.submit(
        bench.echo, {"text": "x"}, owner="you", webhook=hook, parent=None, token=None, trace=None
    )
    await bench.ended(told)

    async def deliveries() -> list[tuple[str, int, str | None]]:
        found = (await api.get(f"/admin/predictions/{told.id}")).json()
        assert found["webhook"] == hook.url
        return [(each["state"], each["attempts"], each["problem"]) for each in found["deliveries"]]

    assert await deliveries() == [("pending", 0, None)]
    (due,) = await bench.store.due_deliveries(2e10, 10)
    await bench.store.postpone_delivery(due.id, 1, 1e10, "HTTP 500")
    assert await deliveries() == [("pending", 1, "HTTP 500")]
    await bench.store.end_delivery(due.id)
    assert await deliveries() == [("delivered", 2, None)]
    assert await bench.store.next_delivery() is None
    await bench.store.end_delivery(due.id, "HTTP 410")
    assert await deliveries() == [("given up", 2, "HTTP 410")]


async def test_a_prediction_costs_what_its_seconds_do(api: Api) -> None:
    prices = {"currency": "EUR", "per_second": {"cpu": 2.0}}
    config = Config.model_validate({"prices": prices, "models": [{"name": "test/echo", "kind": "echo"}]})
    record = await api.ended(await api.create(text="x", delay=0.01))
    async with Api(structs.replace(api.services, config=config)) as priced:
        found = (await priced.get(f"/admin/predictions/{record['id']}")).json()
    assert found["hardware"] == "cpu"
    assert (found["cost"], found["currency"]) == (
        pytest.approx(2 * record["metrics"]["predict_time"], abs=1e-9),
        "EUR",
    )
    assert (await api.get(f"/admin/predictions/{record['id']}")).json()["cost"] is None


# -- tokens -------------------------------------------------------------------------------------------------


async def test_a_token_is_made_used_listed_and_revoked(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.gateway.api.auth.MEMORY", 0.0)
    made = await api.post("/admin/tokens", json={"name": HOSTILE, "scope": "read", "owner": "you"})
    assert made.status_code == 201
    secret = made.json()["token"]
    async with Api(api.services, secret) as client:
        account = await client.get("/v1/account")
        assert account.json()["username"] == "you"
        assert (await client.post("/v1/predictions", json={})).status_code == 403
        listed = (await api.get("/admin/tokens")).json()["results"]
        (found,) = [each for each in listed if each["id"] == made.json()["id"]]
        assert (found["name"], found["scope"], found["owner"]) == (HOSTILE, "read", "you")
        assert secret not in str(listed)
        revoked = (await api.delete(f"/admin/tokens/{found['id']}")).json()
        assert revoked["revoked_at"] is not None
        assert (await api.delete(f"/admin/tokens/{found['id']}")).json() == revoked
        assert (await client.get("/v1/account")).status_code == 401
    assert (await api.delete("/admin/tokens/none")).status_code == 404


async def test_a_token_may_run_predictions_of_the_first_account_unless_more_is_said(api: Api) -> None:
    made = (await api.post("/admin/tokens", json={"name": "x"})).json()
    assert (made["scope"], made["owner"]) == ("run", "me")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, ""),
        ({"name": ""}, "name"),
        ({"name": 1}, "name"),
        ({"name": "a\x1b[2J"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "x", "scope": "root"}, "scope"),
        ({"name": "x", "scope": ["admin"]}, "scope"),
        ({"name": "x", "owner": "A B"}, "owner"),
        ({"name": "x", "id": "y"}, ""),
    ],
)
async def test_a_token_that_cannot_be_is_refused_by_field(
    api: Api, bench: Bench, body: dict[str, Any], field: str
) -> None:
    reply = await api.post("/admin/tokens", json=body)
    assert reply.status_code == 422
    assert [problem["field"] for problem in reply.json()["invalid_fields"]] == [field]
    assert len(await bench.store.list_tokens()) == 2


# -- settings -----------------------------------------------------------------------------------------------


async def test_a_new_key_signs_beside_the_old_one_for_a_while(api: Api, bench: Bench) -> None:
    await api.services.webhooks.start()
    (old,) = await bench.store.webhook_keys("me", time.time())
    made = await api.post("/admin/webhooks/secret", json={"keep": 60})
    assert made.status_code == 201
    assert (await api.get("/v1/webhooks/default/secret")).json()["key"] == made.json()["key"]
    assert await bench.store.webhook_keys("me", time.time() + 50) == [made.json()["key"], old]
    assert await bench.store.webhook_keys("me", time.time() + 70) == [made.json()["key"]]
    for wrong in (-1, "60", True, 1e9):
        assert (await api.post("/admin/webhooks/secret", json={"keep": wrong})).status_code == 422


async def test_the_config_is_told_with_its_defaults_and_without_its_secrets(api: Api, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "server": {"public_url": "https://me:hunter2@models.example.org"},
            "models": [
                {
                    "name": "a/b",
                    "kind": "cog",
                    "source": {"git": "https://ghp_hunter2@example.org/x.git", "revision": "main"},
                    "options": {"environment": {"API_KEY": "hunter2"}},
                },
                {
                    "name": "a/c",
                    "kind": "echo",
                    "cover_image_url": "https://example.org/x.png?token=hunter2&size=3",
                },
            ],
        }
    )
    async with Api(structs.replace(api.services, config=config)) as client:
        reply = await client.get("/admin/config")
    assert "hunter2" not in reply.text
    shown = reply.json()
    assert shown["limits"]["attempts"] == 2
    assert shown["server"]["public_url"] == "https://**********@models.example.org"
    assert shown["models"][0]["options"]["environment"] == {"API_KEY": "**********"}
    assert shown["models"][0]["source"]["git"] == "https://**********@example.org/x.git"
    assert shown["models"][1]["cover_image_url"].endswith("?token=**********&size=3")


def test_a_config_without_secrets_is_told_as_it_is() -> None:
    tls = {"certificate": "/c.pem", "key": "/k.pem"}
    config = Config.model_validate({"server": {"tls": tls}, "models": [{"name": "a/b", "kind": "echo"}]})
    assert redact(config) == config.model_dump(mode="json")


async def test_the_machine_tells_its_memory_and_what_the_data_folder_takes(api: Api, bench: Bench) -> None:
    found = (await api.get("/admin/machine")).json()
    assert 0 < found["memory"]["available"] <= found["memory"]["total"]
    assert found["threads"] >= 1
    disk = found["disk"]
    assert disk["folder"] == str(bench.folder)
    assert 0 < disk["free"] < disk["total"]
    assert disk["parts"]["database"] > 0


async def test_what_lies_in_a_folder_is_counted_once_and_links_lead_nowhere(tmp_path: Path) -> None:
    elsewhere, home = tmp_path / "elsewhere", tmp_path / "home"
    for folder in (elsewhere, home / "weights" / "deep", home / "logs"):
        folder.mkdir(parents=True)
    (elsewhere / "big").write_bytes(b"x" * 10 * MIB)
    (home / "weights" / "deep" / "model").write_bytes(b"x" * MIB)
    (home / "weights" / "same").hardlink_to(home / "weights" / "deep" / "model")
    (home / "weights" / "linked").symlink_to(elsewhere)
    (home / "appliance.db").write_bytes(b"x" * 4096)
    (home / "appliance.db-wal").write_bytes(b"x" * 4096)
    storage = Storage(home)
    parts = (await storage.usage()).parts
    assert next(iter(parts)) == "weights"
    assert MIB <= parts["weights"] < 2 * MIB
    assert parts["database"] == 8192
    (home / "weights" / "deep" / "model").unlink()
    assert (await storage.usage()).parts == parts  # counted a moment ago


# -- pinning ------------------------------------------------------------------------------------------------


async def test_a_pinned_model_is_loaded_and_stays_until_it_is_unpinned(api: Api, bench: Bench) -> None:
    pinned = await api.post("/admin/models/test/echo/pin")
    assert (pinned.status_code, pinned.json()["pinned"]) == (202, True)
    assert "models.yaml" in pinned.json()["detail"]

    async def echo() -> dict[str, Any]:
        models = (await api.get("/admin/status")).json()["models"]
        return next(each for each in models if each["name"] == "test/echo")

    deadline = time.monotonic() + 60
    while (await echo())["state"] != "ready":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    assert (await echo())["pinned"] is True
    await api.services.engine.deployed()  # what deployments want is another matter
    assert (await echo())["pinned"] is True
    assert (await api.post("/admin/models/test/echo/unpin")).json()["pinned"] is False
    assert (await echo())["pinned"] is False
    report = (await api.get("/admin/residency")).json()
    assert {each["name"]: each["pinned"] for each in report["models"]}["test/echo"] is False
    too_big = await api.post("/admin/models/test/big/pin")
    assert (too_big.status_code, too_big.json()["title"]) == (503, "Model failed to load")
    assert not bench.scheduler.pinned("test/big")
    assert (await api.post("/admin/models/test/none/pin")).status_code == 404


async def test_predictions_are_searched_page_by_page(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("first apple", "pear", "second apple", "plum"):
        await api.ended(await api.create(text=text))
    listed = (await api.get("/admin/predictions?search=APPLE")).json()
    assert [each["preview"]["input"] for each in listed["results"]] == ["second apple", "first apple"]
    assert listed["next"] is None
    monkeypatch.setattr(predictions, "SEARCHED", 2)
    page = (await api.get("/admin/predictions?search=apple")).json()
    assert [each["preview"]["output"] for each in page["results"]] == ["second apple"]
    page = (await api.get(page["next"])).json()
    assert [each["preview"]["output"] for each in page["results"]] == ["first apple"]
    long = await api.get("/admin/predictions", params={"search": "x" * 201})
    assert long.status_code == 422
    assert "search" in long.json()["detail"]


async def test_all_matching_predictions_are_downloaded(api: Api, yours: Api) -> None:
    for number in range(102):  # more than a page
        await api.create(text=f"=number {number}")
    last = await api.ended(await api.create(text="other"))
    lines = (await api.get("/admin/predictions.jsonl?model=test/echo")).text.splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 103
    assert (records[0]["id"], records[0]["input"]) == (last["id"], {"text": "other"})
    reply = await api.get("/admin/predictions.csv?search=number")
    assert reply.headers["content-disposition"] == 'attachment; filename="predictions.csv"'
    rows = [*csv.DictReader(io.StringIO(reply.text))]
    assert len(rows) == 102
    assert {row["input"][:8] for row in rows} == {"'=number"}  # no formula
    assert (await yours.get("/admin/predictions.jsonl")).text == ""
    assert (await yours.get("/admin/predictions.csv")).text.startswith("id,type,status,")


async def test_the_data_of_a_prediction_is_deleted_by_its_owner(api: Api, yours: Api) -> None:
    made = await api.ended(await api.create(text="private"))
    path = f"/admin/predictions/{made['id']}"
    assert (await yours.delete(path)).status_code == 404
    assert (await api.delete(path)).status_code == 204
    kept = (await api.get(path)).json()
    assert (kept["data_removed"], kept["input"], kept["status"]) == (True, {}, "succeeded")
    slow = await api.create(text="x", delay=30)
    refused = await api.delete(f"/admin/predictions/{slow['id']}")
    assert refused.status_code == 409
    assert "cancel it first" in refused.json()["detail"]
    await api.post(f"/admin/predictions/{slow['id']}/cancel")


async def test_a_token_that_is_revoked_over_the_api_is_refused_at_once(api: Api) -> None:
    made = (await api.post("/admin/tokens", json={"name": "lost", "scope": "run"})).json()
    async with Api(api.services, made["token"]) as lost:
        assert (await lost.get("/v1/account")).status_code == 200
        await api.delete(f"/admin/tokens/{made['id']}")
        assert (await lost.get("/v1/account")).status_code == 401
