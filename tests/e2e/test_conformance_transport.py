"""Rows A: addresses, tokens, errors, limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from replicate.client import Client
from replicate.exceptions import ReplicateError

from tests.e2e.clients import beta, client_of, framework, node
from tests.e2e.contract import Contract, operations
from tests.running import TOKEN, Appliance, fetch

pytestmark = pytest.mark.e2e

ECHO = {"version": "appliance/echo", "input": {"text": "x"}}


def exhaust(appliance: Appliance, secret: str, method: str, path: str) -> None:
    """Use up what a token may do in a minute."""

    async def run() -> None:
        headers = {"Authorization": f"Bearer {secret}"}
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(
            base_url=appliance.url, headers=headers, limits=limits, timeout=60, trust_env=False
        ) as client:
            statuses: list[int] = []
            while statuses.count(429) < 100:
                replies = await asyncio.gather(
                    *(client.request(method, path, content=b"{}") for _ in range(100))
                )
                statuses += [reply.status_code for reply in replies]
                assert len(statuses) < 6000
            assert 500 not in statuses

    asyncio.run(run())


def test_a1_a21_python_with_a_base_url_without_v1(official: Client) -> None:
    account = official.accounts.current()
    assert account.type == "organization"
    assert account.username == "appliance"
    assert account.name


def test_a2_a_base_url_that_ends_in_v1(appliance: Appliance, official: Client) -> None:
    with client_of(f"{appliance.url}/v1") as doubled:
        assert doubled.accounts.current() == official.accounts.current()


@pytest.mark.parametrize(
    "path", ["/v1/account", "/v1/account/", "/v1/v1/account", "/v1/models/", "/v1/hardware/"]
)
def test_a3_a20_every_spelling_is_answered_and_none_redirects(api: httpx.Client, path: str) -> None:
    assert api.get(path).status_code == 200


def test_a3_clients_whose_base_url_has_v1(appliance: Appliance) -> None:
    assert node(appliance, "console.log(JSON.stringify(await replicate.accounts.current()))")["username"]
    assert beta(appliance, "print(json.dumps(replicate.account.get().username))") == "appliance"


@pytest.mark.parametrize("scheme", ["Bearer", "Token", "bearer", "TOKEN"])
def test_a4_a5_a6_schemes_and_a_token_with_spaces(appliance: Appliance, scheme: str) -> None:
    assert " " in TOKEN
    headers = {"Authorization": f"{scheme} {TOKEN}"}
    assert fetch(f"{appliance.url}/v1/account", headers=headers).status_code == 200


def test_a7_without_a_token(stranger: httpx.Client) -> None:
    reply = stranger.get("/v1/account")
    assert reply.status_code == 401
    assert reply.json() == {
        "title": "Unauthenticated",
        "detail": "You did not pass an authentication token",
        "status": 401,
    }


def test_a8_a_wrong_token(appliance: Appliance) -> None:
    with client_of(appliance.url, "wrong") as impostor, pytest.raises(ReplicateError) as caught:
        impostor.accounts.current()
    error = caught.value
    assert (error.title, error.detail, error.status) == (
        "Unauthenticated",
        "You did not pass a valid authentication token",
        401,
    )


def test_a9_a_wrong_token_is_not_tried_again(appliance: Appliance) -> None:
    sent = beta(
        appliance,
        """
import httpx
sent = []
hooks = {"request": [lambda request: sent.append(str(request.url))]}
client = replicate.Replicate(bearer_token="wrong", http_client=httpx.Client(event_hooks=hooks))
try:
    client.account.get()
except replicate.AuthenticationError as error:
    sent.append(error.status_code)
print(json.dumps(sent))
""",
    )
    assert sent == [f"{appliance.url}/v1/account", 401]


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/v1/nowhere", None, 404),
        ("GET", "/v1/predictions/none", None, 404),
        ("GET", "/v1/models/no/model", None, 404),
        ("POST", "/v1/predictions", b"{", 400),
        ("POST", "/v1/predictions", b"[]", 400),
        ("POST", "/v1/predictions", b'"\\u0000"', 400),
        ("POST", "/v1/predictions", b"[" * 100_000, 400),
        ("POST", "/v1/predictions", b"{}", 422),
        ("PUT", "/v1/predictions", b"{}", 405),
        ("POST", "/v1/files", b"x", 400),
        ("GET", "/v1/predictions?cursor=x", None, 404),
    ],
)
def test_a10_a12_every_error_is_json_with_a_detail(
    api: httpx.Client, method: str, path: str, content: bytes | None, status: int
) -> None:
    reply = api.request(method, path, content=content)
    assert reply.status_code == status
    assert reply.headers["content-type"] in {"application/problem+json", "application/json"}
    assert isinstance(reply.json()["detail"], str)
    if status == 404 and "cursor" not in path:
        assert reply.json()["detail"] == "The requested resource could not be found."


def test_a11_the_vercel_sdk_shows_the_detail(appliance: Appliance) -> None:
    message = node(
        appliance,
        """
        import { createReplicate } from "@ai-sdk/replicate";
        import { generateImage } from "ai";
        const provider = createReplicate({ apiToken: auth, baseURL: baseUrl });
        try {
          await generateImage({ model: provider.image("no/model"), prompt: "x", maxRetries: 0 });
        } catch (error) {
          console.log(JSON.stringify(String(error.message)));
        }
        """,
    )
    assert message == "The requested resource could not be found."


def test_a13_python_waits_as_long_as_it_is_told(appliance: Appliance, new_token: Callable[..., str]) -> None:
    secret = new_token("limited")
    exhaust(appliance, secret, "GET", "/v1/account")
    waited = []
    with client_of(appliance.url, secret) as client:
        for _ in range(200):  # fifty a second come back meanwhile
            began = time.monotonic()
            assert client.accounts.current().username == "appliance"
            waited.append(time.monotonic() - began)
            if waited[-1] >= 1:
                return
            exhaust(appliance, secret, "GET", "/v1/account")
    raise AssertionError(f"never waited: {waited}")


def test_a14_a16_a17_a18_a_creation_over_the_limit(
    appliance: Appliance, new_token: Callable[..., str]
) -> None:
    secret = new_token("limited too")
    exhaust(appliance, secret, "POST", "/v1/predictions")
    with client_of(appliance.url, secret) as client, pytest.raises(ReplicateError) as caught:
        for _ in range(30):  # ten a second come back meanwhile
            client.predictions.create(version="appliance/echo", input={})
    assert caught.value.status == 429
    assert "throttled" in str(caught.value.detail)
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx.Client(base_url=appliance.url, headers=headers, timeout=90, trust_env=False) as client:
        replies = [client.post("/v1/predictions", json=ECHO) for _ in range(30)]
    reply = next(reply for reply in replies if reply.status_code == 429)
    assert int(reply.headers["retry-after"]) == reply.json()["retry_after"] >= 1
    assert int(reply.headers["ratelimit-remaining"]) == 0
    assert int(reply.headers["ratelimit-reset"]) >= 1
    # The JavaScript client sends six requests at once; the limiter gets over it.
    status = node(
        appliance,
        """
        const create = () => replicate.predictions.create({ model: "appliance/echo", input: {} });
        const all = Array.from({ length: 40 }, create);
        const refused = (await Promise.allSettled(all)).filter(({ status }) => status === "rejected");
        console.log(JSON.stringify(refused[0].reason.response.status));
        """,
        secret=secret,
    )
    assert status == 429
    time.sleep(reply.json()["retry_after"])
    again = httpx.post(f"{appliance.url}/v1/predictions", headers=headers, json=ECHO, trust_env=False)
    assert again.status_code == 201
    assert int(again.headers["ratelimit-remaining"]) >= 0


def test_a15_a_failure_that_may_have_done_the_work_is_not_repeated(appliance: Appliance) -> None:
    sent = beta(
        appliance,
        """
import httpx
sent = []
hooks = {"request": [lambda request: sent.append(str(request.url))]}
client = replicate.Replicate(http_client=httpx.Client(event_hooks=hooks))
try:
    client.predictions.create(version="test/too-big", input={})
except replicate.InternalServerError as error:
    sent.append(error.status_code)
print(json.dumps(sent))
""",
    )
    assert sent == [f"{appliance.url}/v1/predictions", 503]


@pytest.mark.parametrize("method", ["POST", "QUERY", "PATCH", "DELETE"])
def test_a19_a_browser_asks_first(stranger: httpx.Client, method: str) -> None:
    asked = {
        "Origin": "https://app.example.org",
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type, prefer, x-stainless-lang",
    }
    reply = stranger.options("/v1/models", headers=asked)
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-origin"] == "https://app.example.org"
    assert method in reply.headers["access-control-allow-methods"]
    allowed = reply.headers["access-control-allow-headers"]
    assert {"prefer", "authorization", "x-stainless-lang"} <= {each.strip() for each in allowed.split(",")}


@pytest.mark.last
def test_a22_every_operation_was_answered_as_the_documents_say(
    api: httpx.Client, contract: Contract, appliance: Appliance
) -> None:
    served: dict[str, Any] = api.get("/openapi.json").json()
    assert contract.seen == set(operations(served))


def test_a_proxy_is_not_believed_unless_the_config_says_so(api: httpx.Client, appliance: Appliance) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example.org"}
    record = api.post("/v1/predictions", json=ECHO, headers=headers).json()
    assert record["urls"]["get"].startswith(f"{appliance.url}/")


def test_swagger_knows_every_operation(appliance: Appliance, api: httpx.Client) -> None:
    assert api.get("/docs").status_code == 200
    ours = {"builds.get", "models.versions.create"}
    known = set(operations(api.get("/openapi.json").json()))
    assert ours < known
    assert len(known - ours) == 37
    assert framework(appliance, "print(json.dumps(1))") == 1
