"""The routes, on a real engine and store in this process: what clients send, and what they get."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.config import CollectionConfig, Config, ModelConfig
from appliance.domain import token
from appliance.domain.prediction import Webhook
from appliance.domain.token import Scope, Token
from appliance.gateway.api import paging, requests
from appliance.gateway.api.client_address import HEADER, signed
from appliance.gateway.api.rate_limit import RateLimits
from appliance.gateway.catalogue.catalogue import Catalogue
from tests.support.api_client import SECRET, Api, services_of
from tests.support.engine_bench import MIB, Bench


def events(text: str) -> list[tuple[str, str, str]]:
    """Every event of a stream as (name, id, data); comments are left out."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = [line.partition(": ")[::2] for line in lines]
            data = "\n".join(value for key, value in fields if key.rstrip(":") == "data")
            found.append((dict(fields)["event"], dict(fields)["id"], data))
    return found


# -- who may call -------------------------------------------------------------------------------------------

GUARDED = (
    ("GET", "/v1/account"),
    ("POST", "/v1/models/test/echo/versions"),
    ("GET", "/v1/builds"),
    ("GET", "/v1/builds/0123"),
    ("POST", "/v1/builds/0123/cancel"),
    ("GET", "/v1/hardware"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/test/echo"),
    ("QUERY", "/v1/models"),
    ("GET", "/v1/models/test/echo/readme"),
    ("GET", "/v1/models/test/echo/examples"),
    ("GET", "/v1/collections"),
    ("GET", "/v1/collections/x"),
    ("GET", "/v1/models/test/echo/versions"),
    ("GET", "/v1/models/test/echo/versions/x"),
    ("GET", "/v1/predictions"),
    ("POST", "/v1/predictions"),
    ("POST", "/v1/models/test/echo/predictions"),
    ("POST", "/v1/models/0000/predictions"),
    ("GET", "/v1/predictions/x"),
    ("POST", "/v1/predictions/x/cancel"),
    ("GET", "/v1/webhooks/default/secret"),
    ("POST", "/v1/models"),
    ("PATCH", "/v1/models/test/echo"),
    ("DELETE", "/v1/models/test/echo"),
    ("DELETE", "/v1/models/test/echo/versions/x"),
    ("POST", "/v1/models/test/echo/versions/x/trainings"),
    ("GET", "/v1/trainings"),
    ("GET", "/v1/trainings/x"),
    ("POST", "/v1/trainings/x/cancel"),
    ("GET", "/v1/deployments"),
    ("POST", "/v1/deployments"),
    ("GET", "/v1/deployments/me/x"),
    ("PATCH", "/v1/deployments/me/x"),
    ("DELETE", "/v1/deployments/me/x"),
    ("POST", "/v1/deployments/me/x/predictions"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/x"),
    ("DELETE", "/v1/files/x"),
    ("GET", "/admin/accounts/ada/data"),
    ("DELETE", "/admin/accounts/ada/data"),
    ("GET", "/admin/audit"),
    ("POST", "/admin/signins"),
    ("POST", "/admin/signouts"),
    ("GET", "/admin/me"),
    ("GET", "/admin/status"),
    ("GET", "/admin/residency"),
    ("GET", "/admin/nodes"),
    ("POST", "/admin/nodes/x/drain"),
    ("DELETE", "/admin/nodes/x/drain"),
    ("GET", "/admin/usage"),
    ("GET", "/admin/limits"),
    ("GET", "/metrics"),
    ("GET", "/admin/usage.csv"),
    ("POST", "/admin/reload"),
    ("POST", "/admin/models/test/echo/load"),
    ("POST", "/admin/models/test/echo/unload"),
    ("POST", "/admin/models/test/echo/pin"),
    ("POST", "/admin/models/test/echo/unpin"),
    ("GET", "/admin/predictions"),
    ("GET", "/admin/predictions/x"),
    ("POST", "/admin/predictions/x/cancel"),
    ("DELETE", "/admin/predictions/x"),
    ("GET", "/admin/predictions.csv"),
    ("GET", "/admin/predictions.jsonl"),
    ("GET", "/admin/history"),
    ("GET", "/admin/models/test/echo/logs"),
    ("GET", "/admin/models/test/echo/logs/events"),
    ("GET", "/admin/models/test/echo/entry"),
    ("GET", "/admin/config/file"),
    ("PUT", "/admin/config/file"),
    ("POST", "/admin/config/check"),
    ("GET", "/admin/config/schema"),
    ("GET", "/admin/sessions"),
    ("DELETE", "/admin/sessions/x"),
    ("GET", "/admin/tokens"),
    ("POST", "/admin/tokens"),
    ("DELETE", "/admin/tokens/x"),
    ("GET", "/admin/config"),
    ("GET", "/admin/machine"),
    ("POST", "/admin/webhooks/secret"),
    ("GET", "/admin/conversations"),
    ("POST", "/admin/conversations"),
    ("GET", "/admin/conversations/x"),
    ("PUT", "/admin/conversations/x"),
    ("DELETE", "/admin/conversations/x"),
    ("PUT", "/admin/models/test/echo/examples/x"),
    ("DELETE", "/admin/models/test/echo/examples/x"),
    ("GET", "/admin/catalogue"),
    ("GET", "/admin/hub"),
    ("POST", "/admin/proposals"),
    ("GET", "/admin/additions"),
    ("POST", "/admin/additions"),
    ("GET", "/admin/additions/x"),
    ("GET", "/admin/additions/x/events"),
    ("POST", "/admin/additions/x/cancel"),
    ("GET", "/admin/models/test/echo/update"),
    ("POST", "/admin/models/test/echo/update"),
    ("DELETE", "/admin/models/test/echo"),
    ("GET", "/admin/weights/unused"),
    ("POST", "/admin/weights/prune"),
)


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_is_answered_without_a_token(shared_api: Api, method: str, path: str) -> None:
    async with Api(shared_api.services, None) as stranger, Api(shared_api.services, "wrong") as impostor:
        without = await stranger.request(method, path)
        address = f"2001:db8:{GUARDED.index((method, path))}::1"  # an address may try few wrong tokens
        wrong = await impostor.request(method, path, headers={HEADER: signed(address)})
    assert (without.status_code, without.json()) == (
        401,
        {"title": "Unauthenticated", "detail": "You did not pass an authentication token", "status": 401},
    )
    assert wrong.json()["detail"] == "You did not pass a valid authentication token"


async def test_every_guarded_route_is_in_the_list_above(api: Api) -> None:
    from appliance.gateway.api import application

    open_to_all = {
        "/healthz",
        "/readyz",
        "/v1/search",
        "/v1/streams/{token}",
        "/v1/files/stream/{token}",
        "/v1/files/{id}/download",
        "/outputs/{id}/{name}",
        "/openapi.json",
        "/v1/openapi.json",
        "/docs",
        "/docs/{asset}",
        "/admin/sign-in",
        "/admin/sign-in/password",
        "/admin/sign-in/provider",
        "/admin/sign-in/provider/callback",
    }
    for route in application.ROUTES:
        if route.path.startswith(("/openai/", "/anthropic/")):  # see test_dialects.py
            continue
        covered = [
            path
            for method, path in GUARDED
            if method in (route.methods or ()) and route.path_regex.match(path)
        ]
        assert covered or route.path in open_to_all, route.path


@pytest.mark.parametrize(
    ("scope", "refused"),
    [
        (Scope.READ, {"run", "admin"}),
        (Scope.RUN, {"admin"}),
        (Scope.ADMIN, set()),
    ],
)
async def test_a_token_may_do_what_its_scope_says(
    api: Api, bench: Bench, scope: Scope, refused: set[str]
) -> None:
    await bench.store.add_token(
        Token(id="x", name="x", owner="me", digest=token.digest("x"), created_at=0, scope=scope)
    )
    mine = await api.create(text="x", delay=30)
    needs = {
        "read": [
            ("GET", "/v1/predictions"),
            ("GET", f"/v1/predictions/{mine['id']}"),
            ("GET", "/admin/me"),
            ("GET", "/admin/status"),
        ],
        "run": [
            ("POST", "/v1/models/test/echo/predictions"),
            ("POST", f"/v1/predictions/{mine['id']}/cancel"),
            ("GET", "/v1/webhooks/default/secret"),
            ("POST", "/v1/models"),
            ("POST", "/v1/deployments"),
            ("POST", "/v1/files"),
            ("DELETE", "/v1/files/x"),
        ],
        "admin": [
            ("POST", "/v1/builds/x/cancel"),
            ("POST", "/admin/models/test/echo/unload"),
            ("GET", "/admin/residency"),
            ("POST", "/admin/reload"),
        ],
    }
    await api.services.webhooks.start()
    async with Api(api.services, "x") as client:
        for needed, requests in needs.items():
            for method, path in requests:
                reply = await client.request(method, path, json={"input": {}} if method == "POST" else None)
                assert (reply.status_code == 403) is (needed in refused), (needed, path, reply.text)
                if needed in refused:
                    assert reply.json()["title"] == "Permission denied"
                    assert needed in reply.json()["detail"]


async def test_a_token_over_its_rate_is_told_when_to_come_back(api: Api) -> None:
    from msgspec import structs

    limited = structs.replace(api.services, rate_limits=RateLimits(requests=60, predictions=2))
    async with Api(limited) as client:
        first = await client.get("/v1/account")
        assert [first.headers[f"ratelimit-{part}"] for part in ("limit", "remaining", "reset")] == [
            "60",
            "59",
            "1",
        ]
        for _ in range(2):
            await client.create(text="x")
        for _ in range(6):  # as the JavaScript client does within milliseconds
            reply = await client.post("/v1/models/test/echo/predictions", json={"input": {}})
            assert reply.status_code == 429
            assert reply.json()["retry_after"] == int(reply.headers["retry-after"]) == 30
            assert reply.headers["ratelimit-remaining"] == "0"
        assert (await client.get("/v1/account")).status_code == 200
    async with Api(limited, "other") as another:
        assert (await another.create(text="x"))["status"] == "starting"


async def test_health_needs_no_token(api: Api) -> None:
    async with Api(api.services, None) as stranger:
        assert (await stranger.get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/account", "/v1/account/", "/v1/v1/account", "/v1/v1/account/"])
async def test_every_spelling_of_a_path_is_the_same(api: Api, path: str) -> None:
    reply = await api.get(path, headers={"Authorization": f"Token {SECRET}"})
    assert reply.status_code == 200
    assert reply.json()["username"] == "me"
    assert reply.json()["name"] == "My Company"


async def test_what_is_not_there_is_404_in_json_and_a_wrong_method_405(api: Api) -> None:
    for path in ("/nothing", "/v1/predictions/x", "/v1/models/no/model", "/v1/streams/x"):
        reply = await api.get(path)
        assert reply.status_code == 404, path
        assert reply.json() == {"detail": "The requested resource could not be found.", "status": 404}
        assert reply.headers["content-type"] == "application/problem+json"
    reply = await api.delete("/v1/account")
    assert (reply.status_code, reply.json()["detail"]) == (405, 'Method "DELETE" not allowed.')


async def test_browsers_of_other_sites_may_ask(api: Api) -> None:
    site = {"Origin": "https://site.example"}
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "prefer,x-stainless-os",
    }
    reply = await api.options("/v1/predictions", headers={**site, **asked})
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-origin"] == "https://site.example"
    assert "prefer" in reply.headers["access-control-allow-headers"]
    assert "QUERY" in reply.headers["access-control-allow-methods"]
    answer = await api.get("/v1/account", headers=site)
    assert answer.headers["access-control-allow-origin"] == "https://site.example"
    assert "origin" in answer.headers["vary"].lower()


# -- creating -----------------------------------------------------------------------------------------------


async def test_a_prediction_is_created_then_found_finished(api: Api) -> None:
    reply = await api.post("/v1/predictions", json={"version": "test/echo", "input": {"text": "hey"}})
    created = reply.json()
    base = "http://models.example.org:8000/v1/predictions/"
    assert (reply.status_code, created["status"], created["output"]) == (201, "starting", None)
    assert created["urls"]["get"] == base + created["id"] == reply.headers["location"]
    found = await api.ended(created)
    assert (found["status"], found["output"], found["input"]) == ("succeeded", "hey", {"text": "hey"})
    assert found["metrics"]["total_time"] > 0


async def test_every_way_to_name_a_model(api: Api, bench: Bench) -> None:
    version = bench.echo.version
    for spec in (version, "test/echo", f"test/echo:{version}"):
        reply = await api.post("/v1/predictions", json={"version": spec, "input": {}})
        assert reply.json()["version"] == version, spec
    litellm = await api.post(f"/v1/models/{version}/predictions", json={"version": version, "input": {}})
    assert litellm.json()["model"] == "test/echo"


@pytest.mark.parametrize("spec", ["test/echo:latest", "no/model", "x", "0" * 64, "", ":"])
async def test_a_version_that_is_not_there_is_refused_as_on_replicate(api: Api, spec: str) -> None:
    reply = await api.post("/v1/predictions", json={"version": spec, "input": {}})
    assert reply.status_code == 422
    assert reply.json()["title"] == "Invalid version or not permitted"


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ({"input": {}}, [("required", "", "version is required")]),
        ({"version": "test/echo"}, [("required", "", "input is required")]),
        ({"version": "test/echo", "input": None}, [("required", "", "input is required")]),
        (
            {"version": "test/echo", "input": {}, "model": "x"},
            [("additional_property_not_allowed", "", "Additional property model is not allowed")],
        ),
        (
            {"version": 1, "input": {}},
            [("invalid_type", "version", "Invalid type. Expected: string, given: integer")],
        ),
        (
            {"version": "test/echo", "input": []},
            [("invalid_type", "input", "Invalid type. Expected: object, given: array")],
        ),
        (
            {"version": "test/echo", "input": {"repeat": 0, "text": 1}},
            [
                ("invalid_type", "input.text", "Invalid type. Expected: string, given: integer"),
                ("number_gte", "input.repeat", "Must be greater than or equal to 1"),
            ],
        ),
    ],
)
async def test_each_wrong_field_is_named(api: Api, body: Any, rows: list[Any]) -> None:
    reply = await api.post("/v1/predictions", json=body)
    assert reply.status_code == 422
    found = reply.json()
    assert found["title"] == "Input validation failed"
    assert [(row["type"], row["field"], row["description"]) for row in found["invalid_fields"]] == rows
    assert (await api.get("/v1/predictions")).json()["results"] == []


@pytest.mark.parametrize(
    ("webhook", "kind"),
    [
        ("https://" + "a" * 250 + ".org/hook", "format"),
        ("ftp://example.org/x", "format"),
        ("example.org", "format"),
        ("", "format"),
        ("http://", "format"),
        ("http://[", "format"),
        (7, "invalid_type"),
        ("http://127.0.0.1/x", "address"),
        ("http://[::1]:80/x", "address"),
        ("https://localhost/x", "address"),
        ("http://169.254.169.254/latest", "address"),
        ("http://10.1.2.3/x", "address"),
        ("http://[::ffff:192.168.0.1]/", "address"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_webhook_that_cannot_be_is_refused(shared_api: Api, webhook: Any, kind: str) -> None:
    body = {"version": "test/echo", "input": {}, "webhook": webhook}
    reply = await shared_api.post("/v1/predictions", json=body)
    assert reply.status_code == 422
    assert [(row["type"], row["field"]) for row in reply.json()["invalid_fields"]] == [(kind, "webhook")]


async def test_a_webhook_event_that_is_none_is_refused(api: Api) -> None:
    body = {"version": "test/echo", "input": {}, "webhook": "https://example.org/x"}
    reply = await api.post("/v1/predictions", json={**body, "webhook_events_filter": ["start", "end", 1]})
    rows = reply.json()["invalid_fields"]
    assert [row["field"] for row in rows] == ["webhook_events_filter.1", "webhook_events_filter.2"]
    assert rows[0]["description"].startswith("webhook_events_filter.1 must be one of the following: ")
    reply = await api.post("/v1/predictions", json={**body, "webhook_events_filter": "start"})
    assert reply.json()["invalid_fields"][0]["type"] == "invalid_type"


async def test_a_webhook_is_shown_with_the_prediction(api: Api) -> None:
    body = {"version": "test/echo", "input": {}, "webhook": "https://example.org/hook"}
    record = (await api.post("/v1/predictions", json={**body, "webhook_events_filter": ["start"]})).json()
    assert record["webhook"] == "https://example.org/hook"
    assert record["webhook_events_filter"] == ["start"]
    stored = await api.services.store.get(record["id"])
    assert stored is not None
    assert stored.webhook == Webhook("https://example.org/hook", ("start",), "http://models.example.org:8000")


async def test_keys_without_effect_pass(api: Api) -> None:
    harmless: dict[str, Any] = {
        "webhook": None,
        "webhook_completed": "x",
        "stream": True,
        "webhook_events_filter": [],
    }
    reply = await api.post("/v1/predictions", json={"version": "test/echo", "input": {}, **harmless})
    assert reply.status_code == 201
    assert "webhook" not in reply.json()


async def test_the_key_of_webhooks_is_one_that_clients_can_read(api: Api) -> None:
    await api.services.webhooks.start()
    (await api.get("/v1/webhooks/default/secret")).raise_for_status()
    key = (await api.get("/v1/webhooks/default/secret")).json()["key"]
    assert key.startswith("whsec_")
    assert len(key.split("_")) == 2
    assert len(key) == len("whsec_") + 32


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"nul", b"\xff\xfe{}", b'{"version": "\\ud800"}', b"[" * 20_000, b"{}x"],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_body_that_is_no_json_object_is_refused(shared_api: Api, body: bytes) -> None:
    reply = await shared_api.post("/v1/predictions", content=body)
    assert reply.status_code == 400, reply.text
    assert isinstance(reply.json()["detail"], str)


async def test_strange_values_pass_unharmed(api: Api) -> None:
    strange: dict[str, Any] = {
        "text": "nul \0 and \u2028 and \U0001f600",
        "huge": 2**80,
        "nested": [[[{}]]],
        "": 1,
    }
    assert (await api.ended(await api.create(**strange)))["input"] == strange


async def test_a_body_over_the_limit_is_413_however_it_is_sent(api: Api) -> None:
    large = json.dumps({"version": "test/echo", "input": {"text": "x" * 70_000}}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    for content in (large, pieces()):
        reply = await api.post("/v1/predictions", content=content)
        assert reply.status_code == 413
        assert "limits.body" in reply.json()["detail"]


async def test_a_model_that_fits_nowhere_is_refused_with_the_numbers(api: Api) -> None:
    reply = await api.post("/v1/models/test/big/predictions", json={"input": {}})
    assert reply.status_code == 503
    assert "needs 100.0 MiB" in reply.json()["detail"]
    assert reply.headers["x-should-retry"] == "false"


async def test_a_full_queue_is_429_and_says_when_to_come_back(tmp_path: Path) -> None:
    bench = await Bench(tmp_path, queue_per_model=1).start()
    try:
        await bench.store.add_token(
            Token(id="t", name="t", owner="me", digest=token.digest(SECRET), created_at=0, scope=Scope.ADMIN)
        )
        services = services_of(bench)
        async with Api(services) as api:
            for _ in range(2):  # the model runs two at a time
                created = await api.create(delay=30)
                while (await api.get(f"/v1/predictions/{created['id']}")).json()["status"] == "starting":
                    await asyncio.sleep(0.005)
            await api.create(delay=30)
            reply = await api.post("/v1/models/test/echo/predictions", json={"input": {}})
        assert reply.status_code == 429
        assert reply.json()["retry_after"] == int(reply.headers["retry-after"]) > 0
    finally:
        await bench.stop()
        await bench.cluster.close()


# -- waiting, deadlines, cancelling -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait", "wait"),
        ("wait=5", "wait=5"),
        ("WAIT=300", "wait=60"),
        ("respond-async, wait=7", "wait=7"),
        ("wait=0", "wait=1"),
        ("wait=30.5", "wait=30"),
        ("wait=0.5", "wait=1"),
    ],
)
async def test_a_wait_is_answered_with_the_finished_prediction(api: Api, prefer: str, applied: str) -> None:
    reply = await api.post(
        "/v1/models/test/echo/predictions", json={"input": {"text": "x"}}, headers={"Prefer": prefer}
    )
    assert (reply.status_code, reply.json()["status"], reply.json()["output"]) == (201, "succeeded", "x")
    assert reply.headers["preference-applied"] == applied


@pytest.mark.parametrize("prefer", ["respond-async", "wait=x", "waiting", ""])
async def test_what_is_no_wait_is_not_waited_for(api: Api, prefer: str) -> None:
    record = await api.create({"Prefer": prefer}, delay=30)
    assert record["status"] == "starting"


async def test_a_wait_that_is_over_is_answered_as_starting_although_it_runs(api: Api) -> None:
    reply = await api.post(
        "/v1/models/test/stream/predictions",
        json={"input": {"text": "a b c", "chunk_delay": 30}},
        headers={"Prefer": "wait=1"},
    )
    assert (reply.status_code, reply.json()["status"], reply.json()["output"]) == (202, "starting", None)
    assert (await api.until_output(reply.json()))["status"] == "processing"


async def test_a_deadline_is_shown_and_kept_to(api: Api) -> None:
    record = await api.create({"Cancel-After": "1h30m45s"}, text="x")
    created = (await api.ended(record))["created_at"]
    assert record["deadline"] > created
    for wrong in ("4s", "4", "soon", "-5s", "5x", "", "1.5m"):
        reply = await api.post(
            "/v1/models/test/echo/predictions", json={"input": {}}, headers={"Cancel-After": wrong}
        )
        assert reply.status_code == 422, wrong
        assert reply.json()["invalid_fields"][0]["field"] == "Cancel-After"


async def test_cancel_keeps_what_there_is_and_can_be_repeated(api: Api) -> None:
    body = {"input": {"text": "a b c", "chunk_delay": 30}}
    record = (await api.post("/v1/models/test/stream/predictions", json=body)).json()
    await api.until_output(record)
    canceled = await api.post(f"/v1/predictions/{record['id']}/cancel")
    assert (canceled.status_code, canceled.json()["status"], canceled.json()["output"]) == (
        200,
        "canceled",
        ["a "],
    )
    assert canceled.json()["completed_at"]
    assert (await api.post(f"/v1/predictions/{record['id']}/cancel")).json() == canceled.json()


async def test_what_belongs_to_another_account_is_not_there(api: Api) -> None:
    record = await api.create(text="mine")
    async with Api(api.services, "other") as stranger:
        assert (await stranger.get(f"/v1/predictions/{record['id']}")).status_code == 404
        assert (await stranger.post(f"/v1/predictions/{record['id']}/cancel")).status_code == 404
        assert (await stranger.get("/v1/predictions")).json()["results"] == []
        assert (await stranger.get("/v1/account")).json()["name"] == "you"


# -- streams ------------------------------------------------------------------------------------------------


async def test_a_stream_needs_no_token_and_says_everything_however_late(api: Api) -> None:
    body = {"input": {"text": "a b\nc ", "chunk_delay": 0.01}}
    record = (await api.post("/v1/models/test/stream/predictions", json=body)).json()
    async with Api(api.services, None) as reader:
        reply = await reader.get(record["urls"]["stream"])
        late = await reader.get(record["urls"]["stream"])
    assert reply.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert "no-store" in reply.headers["cache-control"]
    found = events(reply.text)
    assert "".join(data for name, _, data in found if name == "output") == "a b\nc "
    assert (found[-1][0], found[-1][2]) == ("done", "{}")
    assert len({id for _, id, _ in found}) == len(found)
    assert events(late.text) == found


async def test_a_reader_that_comes_back_goes_on_where_it_was(api: Api) -> None:
    body = {"input": {"text": "a b c d "}}
    record = (await api.post("/v1/models/test/stream/predictions", json=body)).json()
    everything = events((await api.get(record["urls"]["stream"])).text)
    for position, (_, id, _) in enumerate(everything):
        rest = await api.get(record["urls"]["stream"], headers={"Last-Event-ID": id})
        assert events(rest.text) == everything[position + 1 :]


async def test_a_stream_tells_of_failure_and_cancellation(api: Api) -> None:
    failed = await api.create(fail="it broke")
    assert events((await api.get(failed["urls"]["stream"])).text)[-2:] == [
        ("error", events((await api.get(failed["urls"]["stream"])).text)[-2][1], '{"detail":"it broke"}'),
        ("done", events((await api.get(failed["urls"]["stream"])).text)[-1][1], '{"reason":"error"}'),
    ]
    canceled = await api.create(delay=30)
    await api.post(f"/v1/predictions/{canceled['id']}/cancel")
    assert events((await api.get(canceled["urls"]["stream"])).text)[-1][2] == '{"reason":"canceled"}'


# -- lists, models, the machine -----------------------------------------------------------------------------


async def test_a_list_is_paged_both_ways(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.gateway.api.paging.PAGE", 2)
    made = [(await api.create(text=str(number)))["id"] for number in range(5)]
    pages, address = [], "/v1/predictions"
    while address:
        page = (await api.get(address)).json()
        pages.append(page)
        address = page["next"]
    assert [[record["id"] for record in page["results"]] for page in pages] == [
        made[4:2:-1],
        made[2:0:-1],
        made[:1],
    ]
    assert pages[0]["previous"] is None
    assert pages[0]["next"].startswith("http://models.example.org:8000/v1/predictions?cursor=")
    back = (await api.get(pages[2]["previous"])).json()
    assert [record["id"] for record in back["results"]] == made[2:0:-1]
    assert (await api.get(back["next"])).json()["results"] == pages[2]["results"]


async def test_a_list_is_filtered_by_time(api: Api) -> None:
    first = await api.create(text="1")
    second = await api.create(text="2")
    after = (await api.get("/v1/predictions", params={"created_after": second["created_at"]})).json()
    before = (await api.get("/v1/predictions", params={"created_before": second["created_at"]})).json()
    assert [record["id"] for record in after["results"]] == [second["id"]]
    assert [record["id"] for record in before["results"]] == [first["id"]]
    wrong = await api.get("/v1/predictions", params={"created_after": "yesterday"})
    assert (wrong.status_code, wrong.json()["invalid_fields"][0]["field"]) == (422, "created_after")


@pytest.mark.parametrize("cursor", ["x", "%00", "AAAA", "é"])
async def test_a_cursor_that_is_none_of_ours_is_404(api: Api, cursor: str) -> None:
    reply = await api.get("/v1/predictions", params={"cursor": cursor})
    assert (reply.status_code, reply.json()["detail"]) == (404, "Invalid cursor")


async def test_models_are_listed_with_versions_that_have_their_schema(api: Api, bench: Bench) -> None:
    await api.ended(await api.create(text="x"))
    listed = (await api.get("/v1/models")).json()
    assert (listed["next"], listed["previous"]) == (None, None)
    model = (await api.get("/v1/models/test/echo")).json()
    assert model in listed["results"]
    assert (model["owner"], model["name"], model["run_count"]) == ("test", "echo", 1)
    assert model["latest_version"]["id"] == bench.echo.version
    inputs = model["latest_version"]["openapi_schema"]["components"]["schemas"]["Input"]["properties"]
    assert inputs["text"]["x-order"] == 0
    versions = (await api.get("/v1/models/test/echo/versions")).json()["results"]
    one = (await api.get(f"/v1/models/test/echo/versions/{bench.echo.version}")).json()
    assert versions == [one]
    assert [int(part) for part in one["cog_version"].split(".")] >= [0, 3, 9]
    assert (await api.get(f"/v1/models/test/stream/versions/{bench.echo.version}")).status_code == 404


def catalogue() -> Catalogue:
    from msgspec import structs

    from appliance.gateway.catalogue.catalogue import describe

    def made(name: str, created_at: float, readme: str | None = None, **more: Any) -> Any:
        model = ModelConfig.model_validate({"name": name, "kind": "echo", **more})
        card, entry = describe(model, "none", created_at)
        return structs.replace(card, readme=readme), entry

    both = [
        made("acme/parrot", 1.0, "# Parrot\n\nRepeats *everything*.", description="Says it back"),
        made("acme/llama", 2.0, aliases=["meta/llama-3"], description="Writes like a parrot"),
        made("acme/secret", 3.0, visibility="private", description="A parrot nobody sees"),
    ]
    collection = CollectionConfig(
        slug="birds", name="Birds", description="All that fly", models=("acme/parrot",)
    )
    return Catalogue([card for card, _ in both], [entry for _, entry in both], [collection])


@pytest.fixture
async def shop(api: Api) -> AsyncIterator[Api]:
    from msgspec import structs

    async with Api(structs.replace(api.services, catalogue=catalogue())) as client:
        yield client


async def test_lists_show_public_models_in_the_order_that_is_asked_for(shop: Api) -> None:
    def names(reply: httpx.Response) -> list[str]:
        return [model["name"] for model in reply.json()["results"]]

    assert names(await shop.get("/v1/models")) == ["llama", "parrot"]
    for key in ("model_created_at", "latest_version_created_at"):
        reply = await shop.get("/v1/models", params={"sort_by": key, "sort_direction": "asc"})
        assert names(reply) == ["parrot", "llama"]
    for key in ("sort_by", "sort_direction"):
        reply = await shop.get("/v1/models", params={key: "beauty"})
        assert (reply.status_code, reply.json()["invalid_fields"][0]["field"]) == (422, key)
    assert (await shop.get("/v1/models/acme/secret")).json()["visibility"] == "private"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("parrot", "text/plain"),
        ('"parrot"', "text/plain"),
        ('"parrot"', "application/json"),
        (" Parrot ", ""),
    ],
)
async def test_every_way_in_which_clients_ask_for_models(shop: Api, content: str, kind: str) -> None:
    reply = await shop.request("QUERY", "/v1/models", content=content, headers={"Content-Type": kind})
    assert reply.status_code == 200
    assert [model["name"] for model in reply.json()["results"]] == ["parrot", "llama"]


async def test_a_search_finds_models_and_collections(shop: Api) -> None:
    found = (await shop.get("/v1/search", params={"query": "llama-3 parrot"})).json()
    assert [one["model"]["name"] for one in found["models"]] == ["llama"]
    assert 0 < found["models"][0]["metadata"]["score"] < 1
    assert (found["query"], found["collections"], found["pages"]) == ("llama-3 parrot", [], [])
    found = (await shop.get("/v1/search", params={"query": "birds"})).json()
    assert (found["models"], found["collections"][0]["models"]) == ([], ["acme/parrot"])
    assert len((await shop.get("/v1/search", params={"query": "parrot", "limit": 1})).json()["models"]) == 1
    without = await shop.get("/v1/search")
    assert (without.status_code, without.json()["detail"]) == (400, 'Query parameter "query" is required')
    for limit in ("0", "51", "x", "-1", "1.5"):
        assert (await shop.get("/v1/search", params={"query": "x", "limit": limit})).status_code == 422


async def test_collections_hold_whole_models(shop: Api) -> None:
    listed = (await shop.get("/v1/collections")).json()["results"]
    assert listed == [{"name": "Birds", "slug": "birds", "description": "All that fly"}]
    one = (await shop.get("/v1/collections/birds")).json()
    assert one["full_description"] is None
    assert one["models"] == [(await shop.get("/v1/models/acme/parrot")).json()]
    assert (await shop.get("/v1/collections/fish")).status_code == 404


async def test_a_readme_is_markdown_or_404(shop: Api) -> None:
    reply = await shop.get("/v1/models/acme/parrot/readme")
    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.text == "# Parrot\n\nRepeats *everything*."
    assert (await shop.get("/v1/models/acme/llama/readme")).status_code == 404
    assert (await shop.get("/v1/models/acme/llama/examples")).json()["results"] == []


async def test_hardware_and_status_name_the_devices(api: Api) -> None:
    assert (await api.get("/v1/hardware")).json() == [{"name": "A CPU", "sku": "cpu"}]
    await api.ended(await api.create(text="x"))
    status = (await api.get("/admin/status")).json()
    assert status["devices"][0]["reserved"] == {"test/echo": MIB}
    assert {model["name"]: model["state"] for model in status["models"]} == {
        "test/echo": "ready",
        "test/stream": "cold",
        "test/big": "cold",
        "test/files": "cold",
    }


async def test_residency_says_what_was_decided_why_and_how_long_it_took(api: Api) -> None:
    cold = await api.ended(await api.create(text="x"))
    warm = await api.ended(await api.create(text="x"))
    found = (await api.get("/admin/residency")).json()
    ready, load = found["decisions"]
    assert (load["what"], load["model"], load["memory"], load["devices"]) == (
        "load",
        "test/echo",
        MIB,
        ["cpu"],
    )
    assert load["why"].startswith("1 prediction waiting")
    assert (ready["what"], ready["number"]) == ("ready", load["number"] + 1)
    (echo,) = [each for each in found["models"] if each["name"] == "test/echo"]
    assert (echo["state"], echo["load_seconds"]) == ("ready", ready["seconds"])
    assert found["waiting"] == []
    assert found["devices"] == [
        {
            "name": "cpu",
            "memory": 10 * MIB,
            "free": 9 * MIB,
            "foreign": 0,
            "reserved": {"test/echo": MIB},
        }
    ]
    assert 0 < cold["metrics"]["cold_start"] <= cold["metrics"]["total_time"]
    assert "cold_start" not in warm["metrics"]
    status = (await api.get("/admin/status")).json()
    assert [each["text"] for each in status["decisions"]] == [ready["text"], load["text"]]


async def test_models_are_loaded_and_unloaded_by_hand(api: Api) -> None:
    loaded = await api.post("/admin/models/test/echo/load")
    assert (loaded.status_code, loaded.json()) == (200, {"name": "test/echo", "state": "ready"})
    unloaded = await api.post("/admin/models/test/echo/unload")
    assert unloaded.status_code == 202
    deadline = time.monotonic() + 60
    while (await api.get("/admin/status")).json()["models"][0]["state"] != "cold":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_an_error_of_our_own_is_500_without_a_traceback(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.services.engine, "submit", lambda *_, **__: 1 / 0)
    reply = await api.post("/v1/models/test/echo/predictions", json={"input": {}})
    assert (reply.status_code, reply.json()["title"]) == (500, "Internal server error")
    assert reply.headers["x-should-retry"] == "false"
    assert "Zero" not in reply.text


async def test_links_follow_the_public_address_where_there_is_one(api: Api) -> None:
    from msgspec import structs

    config = Config.model_validate(
        {"server": {"public_url": "https://public.example/"}, "models": [{"name": "a/b", "kind": "echo"}]}
    )
    async with Api(structs.replace(api.services, config=config)) as public:
        record = await public.create(text="x")
    assert record["urls"]["get"].startswith("https://public.example/v1/predictions/")


async def test_the_path_of_the_public_address_begins_every_link(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msgspec import structs

    config = Config.model_validate(
        {"server": {"public_url": "https://public.example/ai/"}, "models": [{"name": "a/b", "kind": "echo"}]}
    )
    async with Api(structs.replace(api.services, config=config)) as public:
        first = await public.create(text="x")
        record = await public.ended(first)
        assert all(url.startswith("https://public.example/ai/") for url in record["urls"].values())
        second = await public.create(text="y")
        await public.ended(second)
        monkeypatch.setattr(paging, "PAGE", 1)
        page = (await public.get("/v1/predictions")).json()
        assert page["next"].startswith("https://public.example/ai/v1/predictions?cursor=")
        docs = (await public.get("/docs")).text
        assert re.findall(r'(?:href|src)="(.*?)/docs/', docs) == ["/ai"] * 4
        assert '"/ai/openapi.json"' in (await public.get("/docs/start.js")).text
        document = (await public.get("/openapi.json")).json()
        servers = {
            each["url"]
            for operation in (
                document,
                *(one for path in document["paths"].values() for one in path.values()),
            )
            for each in operation.get("servers", ())
        }
        assert servers == {"/ai/v1", "/ai/"}


# -- behind a proxy -----------------------------------------------------------------------------------------

FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "models.example.com, inner"}


@pytest.mark.parametrize(
    ("trusted", "headers", "origin"),
    [
        (["127.0.0.0/8"], FORWARDED, "https://models.example.com"),
        (["127.0.0.0/8"], {"X-Forwarded-Proto": "gopher"}, "http://models.example.org:8000"),
        (["127.0.0.0/8"], {"X-Forwarded-Host": "a b"}, "http://models.example.org:8000"),
        (["10.0.0.0/8"], FORWARDED, "http://models.example.org:8000"),
        (["::1/128"], FORWARDED, "http://models.example.org:8000"),
        ([], FORWARDED, "http://models.example.org:8000"),
        ([], {"Host": "[::1]:8000"}, "http://[::1]:8000"),
    ],
)
async def test_links_begin_with_what_a_trusted_proxy_says(
    bench: Bench, api: Api, trusted: list[str], headers: dict[str, str], origin: str
) -> None:
    server = {"account": "me", "trusted_proxies": trusted}
    config = Config.model_validate({"server": server, "models": [{"name": "a/b", "kind": "echo"}]})
    async with Api(services_of(bench, config)) as client:
        body = {"version": "test/echo", "input": {}}
        reply = await client.post("/v1/predictions", json=body, headers=headers)
    assert reply.json()["urls"]["get"].rpartition("/v1/")[0] == origin


def test_a_proxy_with_ipv4_is_trusted_where_the_appliance_listens_on_all_addresses(bench: Bench) -> None:
    server = {"trusted_proxies": ["10.0.0.0/8", "fd00::/8"]}
    config = Config.model_validate({"server": server, "models": [{"name": "a/b", "kind": "echo"}]})
    services = services_of(bench, config)
    assert requests.is_proxy(services, "::ffff:10.1.2.3")
    assert requests.is_proxy(services, "fd00::1")
    assert not requests.is_proxy(services, "::ffff:11.1.2.3")


async def test_a_key_that_is_ignored_may_have_any_value(api: Api) -> None:
    for ignored in (1e300, 10**25, {"a": None}, "x"):
        body = {"version": "test/echo", "input": {"text": "hello"}, "stream": ignored}
        reply = await api.post("/v1/predictions", json=body)
        assert reply.status_code == 201, reply.text
