"""The audit log over the API: what is recorded, who did it, and what a flood of refusals leaves."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from appliance.domain import failed_attempts, token
from appliance.domain.audit import HIDDEN
from appliance.domain.prediction import Status
from appliance.domain.token import Scope, Token
from appliance.gateway.api import application, audit
from appliance.observability import audit_log
from appliance.observability.audit_log import RefusedLimit, Repeats
from tests.support.api_client import CONFIG, Api
from tests.support.engine_bench import Bench


async def records(api: Api, **query: Any) -> list[dict[str, Any]]:
    reply = await api.get("/admin/audit", params=query)
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["results"]
    return found


def test_every_route_that_changes_something_is_recorded_or_not_for_a_reason() -> None:
    changing = {
        (method, route.path)
        for route in application.ROUTES
        for method in route.methods or ()
        if method not in {"GET", "HEAD", "QUERY", "OPTIONS"}
        and not route.path.startswith(audit.NOT_RECORDED_PREFIXES)
    }
    decided = set(audit.RECORDED) | audit.NOT_RECORDED
    assert changing - decided == set(), "add these routes to RECORDED or NOT_RECORDED of gateway/api/audit.py"
    assert decided - changing == set(), "there are no such routes"
    assert not set(audit.RECORDED) & audit.NOT_RECORDED


async def test_tokens_are_recorded_without_their_secrets(api: Api) -> None:
    limits = {"expires_at": "2050-01-01", "networks": ["10.0.0.1"], "models": ["me/*"]}
    made = await api.post("/admin/tokens", json={"name": "laptop", **limits})
    assert made.status_code == 201
    revoked = await api.delete(f"/admin/tokens/{made.json()['id']}")
    newest, before = (await records(api, action="token"))[:2]
    assert (newest["action"], newest["object"]) == ("token.revoke", made.json()["id"])
    assert (before["action"], before["outcome"]) == ("token.create", "succeeded")
    assert before["after"] == {
        "name": "laptop",
        "owner": "me",
        "scope": "run",
        "expires_at": "2050-01-01T00:00:00+00:00",
        "networks": ["10.0.0.1/32"],
        "models": ["me/*"],
    }
    assert before["owner"] == "me"
    assert before["token"]
    assert before["address"] == "127.0.0.1"
    assert newest["request"] == revoked.headers["x-request-id"]
    assert made.json()["token"] not in str(await records(api))
    assert (await api.services.store.audit.verify()).fault is None


async def test_models_and_predictions_are_recorded(api: Api) -> None:
    assert (await api.post("/admin/models/test/echo/load")).status_code == 200
    assert (await api.post("/admin/models/test/echo/pin")).status_code == 202
    assert (await api.post("/admin/models/test/other/load")).status_code == 404
    record = await api.ended(await api.create(text="secret input"))
    assert (await api.delete(f"/admin/predictions/{record['id']}")).status_code == 204
    found = await records(api)
    assert [(each["action"], each["object"], each["outcome"], each["status"]) for each in found] == [
        ("prediction.delete", record["id"], "succeeded", None),
        ("model.load", "test/other", "failed", 404),
        ("model.pin", "test/echo", "succeeded", 202),
        ("model.load", "test/echo", "succeeded", 200),
    ]
    assert found[2]["after"] == {"pinned": True}
    assert "secret input" not in str(found)


async def test_deployments_are_recorded_with_their_values(api: Api) -> None:
    version = (await api.get("/v1/models/test/echo")).json()["latest_version"]["id"]
    body = {"name": "x", "model": "test/echo", "version": version, "hardware": "cpu"}
    made = await api.post("/v1/deployments", json={**body, "min_instances": 0, "max_instances": 1})
    assert made.status_code == 200, made.text
    assert (await api.delete("/v1/deployments/me/x")).status_code == 204
    newest, before = await records(api, action="deployment")
    assert (newest["action"], newest["before"]["max_instances"]) == ("deployment.delete", 1)
    assert (before["action"], before["object"]) == ("deployment.create", "me/x")


async def test_refused_requests_are_recorded_in_limited_numbers(api: Api) -> None:
    async with Api(api.services, "apl_wrongwrongwrong") as impostor:
        for _ in range(failed_attempts.MOST):
            assert (await impostor.delete("/admin/tokens/x")).status_code == 401
        for _ in range(5):
            assert (await impostor.delete("/admin/tokens/x")).status_code == 429
    found = await records(api)
    assert len(found) == audit_log.MAX_OF_ADDRESS
    assert {(each["action"], each["object"], each["outcome"], each["status"]) for each in found} == {
        ("request.delete", "/admin/tokens/{id}", "denied", 401)
    }
    assert found[0]["address"] == "127.0.0.1"
    assert "wrongwrong" not in str(found)
    await api.services.audit.close()  # as at the end of the minute
    (newest, *_) = await records(api)
    assert (newest["object"], newest["count"], newest["address"]) == (
        "more refused requests",
        failed_attempts.MOST - audit_log.MAX_OF_ADDRESS,
        "127.0.0.1",
    )


async def test_a_token_without_the_right_is_named(api: Api, bench: Bench) -> None:
    await bench.store.add_token(
        Token(id="weak", name="x", owner="you", digest=token.digest("x"), created_at=0, scope=Scope.READ)
    )
    async with Api(api.services, "x") as reader:
        assert (await reader.post("/admin/models/test/echo/unload")).status_code == 403
        assert (await reader.get("/admin/audit")).status_code == 403
    newest, before = await records(api, who="weak")
    assert (newest["object"], before["object"]) == ("/admin/audit", "/admin/models/{owner}/{name}/unload")
    assert (before["owner"], before["status"], before["outcome"]) == ("you", 403, "denied")


async def test_sign_in_and_sign_out_are_recorded(api: Api) -> None:
    assert (await api.post("/admin/signins")).status_code == 204
    assert (await api.post("/admin/signouts")).status_code == 204
    assert [each["action"] for each in await records(api)] == ["session.sign_out", "session.sign_in"]


async def test_repeated_sign_ins_are_recorded_once_a_minute(
    api: Api, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.store.add_token(
        Token(id="weak", name="x", owner="you", digest=token.digest("x"), created_at=0, scope=Scope.READ)
    )
    async with Api(api.services, "x") as reader:
        for _ in range(5):
            assert (await reader.post("/admin/signins")).status_code == 204
            assert (await reader.post("/admin/signouts")).status_code == 204
        assert (await api.post("/admin/signins")).status_code == 204
        found = await records(api)
        assert [(each["action"], each["owner"]) for each in found] == [
            ("session.sign_in", "me"),
            ("session.sign_out", "you"),
            ("session.sign_in", "you"),
        ]
        monkeypatch.setattr(audit_log, "MINUTE", 0.0)  # a minute later
        assert (await reader.post("/admin/signins")).status_code == 204
        assert len(await records(api)) == 4


async def test_the_code_of_a_running_prediction_cannot_sign_in(api: Api, bench: Bench) -> None:
    record = await bench.engine.get((await api.create(delay=30))["id"], "me")
    await bench.until(record, Status.PROCESSING)
    async with Api(api.services, bench.run_tokens.make(record.id, 1)) as program:
        for path in ("/admin/signins", "/admin/signouts"):
            reply = await program.post(path)
            assert (reply.status_code, "use another token" in reply.json()["detail"]) == (403, True)
    await bench.engine.cancel(record.id, "me")
    assert await records(api, action="session") == []


def test_known_repetitions_are_bounded() -> None:
    known = Repeats()
    for number in range(3 * audit_log.MAX_KNOWN):
        assert not known.seen((str(number),), 100.0)
        assert known.seen((str(number),), 159.0)
    assert not known.seen(("0",), 159.0)
    assert known.seen((str(number),), 159.0)
    assert not known.seen((str(number),), 160.0)


async def test_pages_continue_with_older_records(api: Api) -> None:
    for _ in range(5):
        await api.post("/admin/models/test/echo/load")
    reply = (await api.get("/admin/audit", params={"limit": 2, "action": "model.load"})).json()
    numbers = [each["number"] for each in reply["results"]]
    while reply["next"]:
        reply = (await api.get(reply["next"])).json()
        numbers += [each["number"] for each in reply["results"]]
    assert numbers == [5, 4, 3, 2, 1]
    assert (await api.get("/admin/audit", params={"cursor": "x"})).status_code == 404
    assert (await api.get("/admin/audit", params={"since": "yesterday"})).status_code == 422


async def test_a_changed_config_is_recorded_with_its_difference(api: Api) -> None:
    services = api.services
    changed = CONFIG.model_copy(update={"limits": CONFIG.limits.model_copy(update={"queue": 7})})
    services.configure(changed)
    await api.post("/admin/signins")  # is stored after it
    (newest,) = await records(api, action="config")
    assert (newest["action"], newest["owner"]) == ("config.apply", "appliance")
    assert (newest["before"], newest["after"]) == ({"limits.queue": 5000}, {"limits.queue": 7})


def test_a_flood_from_many_addresses_is_bounded() -> None:
    limit = RefusedLimit()
    recorded = [limit.take(f"10.0.{number // 250}.{number % 250}", 100.0)[0] for number in range(5000)]
    assert sum(recorded) == audit_log.MOST
    left = limit.expired(160.0)
    assert len(left) <= 11
    assert sum(event.count for event in left) + sum(recorded) == 5000
    assert audit_log.network("2001:db8::1") == audit_log.network("2001:db8::2")


async def test_secrets_in_records_are_hidden(api: Api) -> None:
    secret = "apl_" + "y" * 40
    reply: httpx.Response = await api.delete(f"/admin/tokens/{secret}")
    assert reply.status_code == 404
    (newest,) = await records(api)
    assert (newest["object"], newest["outcome"]) == (HIDDEN, "failed")
