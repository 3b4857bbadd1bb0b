"""Rows A: addresses, tokens, errors, limits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from replicate.client import Client
from replicate.exceptions import ReplicateError

from tests.e2e.clients import beta, client_of, framework, node
from tests.e2e.conftest import Background
from tests.e2e.contract import Contract, operations
from tests.support.appliance_process import PATIENCE, TOKEN, Appliance, fetch, wait_for

pytestmark = pytest.mark.e2e

ECHO = {"version": "appliance/echo", "input": {"text": "x"}}


@contextmanager
def exhausted(appliance: Appliance, secret: str, method: str, path: str) -> Iterator[threading.Event]:
    """All that a token may do in a minute is used up, and what comes back is used too until the event is set.

    The requests follow each other without waiting for answers: they are more than come back, however slow the
    machine is.
    """
    over, empty = threading.Event(), threading.Event()
    host, port = appliance.address
    head = f"Host: {host}:{port}\r\nAuthorization: Bearer {secret}\r\nContent-Length: 2\r\n"
    request = f"{method} {path} HTTP/1.1\r\n{head}\r\n{{}}"
    last = f"{method} {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n{{}}"

    def use() -> None:
        while not over.is_set():
            with socket.create_connection((host, port), timeout=PATIENCE) as connection:
                connection.sendall((request * 24 + last).encode())
                answers = b"".join(iter(lambda: connection.recv(65_536), b""))
            assert b"HTTP/1.1 5" not in answers
            if answers.count(b"HTTP/1.1 429 ") > 20:
                empty.set()

    with ThreadPoolExecutor(2) as pool:
        using = [pool.submit(use) for _ in range(2)]
        try:
            wait_for(lambda: empty.is_set() or any(each.done() for each in using), "nothing to be left")
            yield over
        finally:
            over.set()
        for each in using:
            each.result()


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


def test_a13_python_waits_as_long_as_it_is_told(
    appliance: Appliance, new_token: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = new_token("limited")
    waits: list[float] = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        over.set()
        time.sleep(seconds)

    with (
        client_of(appliance.url, secret) as client,
        exhausted(appliance, secret, "GET", "/v1/account") as over,
    ):
        monkeypatch.setattr("replicate.client.time", SimpleNamespace(sleep=pause))
        while not waits:
            assert client.accounts.current().username == "appliance"
    assert waits[0] >= 1


def test_a14_a16_a17_a18_a_creation_over_the_limit(
    appliance: Appliance, new_token: Callable[..., str]
) -> None:
    secret = new_token("limited too")
    with (
        client_of(appliance.url, secret) as official,
        httpx.Client(
            base_url=appliance.url,
            headers={"Authorization": f"Bearer {secret}"},
            timeout=PATIENCE,
            trust_env=False,
        ) as client,
    ):
        with exhausted(appliance, secret, "POST", "/v1/predictions"):
            with pytest.raises(ReplicateError) as caught:
                while True:  # one in a hundred may get what has just come back
                    official.predictions.create(version="appliance/echo", input={})
            reply = client.post("/v1/predictions", json=ECHO)
            while reply.status_code == 201:
                reply = client.post("/v1/predictions", json=ECHO)
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
        time.sleep(reply.json()["retry_after"])
        again = client.post("/v1/predictions", json=ECHO)
    assert caught.value.status == status == reply.status_code == 429
    assert "throttled" in str(caught.value.detail)
    assert int(reply.headers["retry-after"]) == reply.json()["retry_after"] >= 1
    assert int(reply.headers["ratelimit-remaining"]) == 0
    assert int(reply.headers["ratelimit-reset"]) >= 1
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
    assert contract.seen >= set(operations(served))


@pytest.mark.last
def test_the_ui_closes_no_connection_before_the_gateway(slow: dict[str, Background]) -> None:
    assert slow["kept"].result() == 200


def test_a_proxy_is_not_believed_unless_the_config_says_so(api: httpx.Client, appliance: Appliance) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example.org"}
    record = api.post("/v1/predictions", json=ECHO, headers=headers).json()
    assert record["urls"]["get"].startswith(f"{appliance.url}/")


def test_swagger_knows_every_operation(appliance: Appliance, api: httpx.Client) -> None:
    assert api.get("/docs").status_code == 200
    ours = {"builds.list", "builds.get", "builds.cancel", "models.versions.create"}
    known = set(operations(api.get("/openapi.json").json()))
    assert ours < known
    assert len(known - ours) == 37
    assert framework(appliance, "print(json.dumps(1))") == 1
