"""Every route as every kind of caller: the expected status of each cell of the matrix."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

import pytest

from appliance.domain import token
from appliance.domain.audit import AuditEvent
from appliance.domain.token import Scope
from appliance.domain.user import PREFIX, Session, User
from appliance.gateway.api import application, create_api
from tests.support.api_client import Api
from tests.support.callers import add_callers
from tests.support.engine_bench import Bench

#: Callers that every route but those open to all refuses, with the status of the refusal.
REFUSED: Final = {"nobody": 401, "expired": 401, "revoked": 401, "ended session": 401, "elsewhere": 403}
#: The other callers, in the order of the columns of ``MATRIX``. All but ``outsider`` and ``other`` have
#: tokens of the account "me". The groups of ``outsider`` and the token ``limited`` allow
#: other models only.
CALLERS: Final = ("reader", "runner", "outsider", "limited", "other", "admin")
#: Routes that need no token. They answer everyone with the status of ``MATRIX``, except that a search and a
#: download check a token if one is given.
OPEN: Final = frozenset(
    {
        *("/v1/streams/{token}", "/v1/files/stream/{token}", "/outputs/{id}/{name}", "/healthz", "/readyz"),
        *("/openapi.json", "/v1/openapi.json", "/docs", "/docs/{asset}"),
        *("/admin/sign-in", "/admin/sign-in/password"),
        *("/admin/sign-in/provider", "/admin/sign-in/provider/callback"),
    }
)
CHECKED_IF_GIVEN: Final = frozenset({"/v1/search", "/v1/files/{id}/download"})
#: The status for each of ``CALLERS``. 404 for ``runner`` and ``admin`` means that the request names something
#: that does not exist, 400, 409 and 422 that it was let in and found wrong.
MATRIX: Final = """
DELETE /admin/accounts/{account}/data                   403 403 403 403 403 200
GET /admin/accounts/{account}/data                      403 403 403 403 403 200
GET /admin/additions                                    403 403 403 403 403 200
POST /admin/additions                                   403 403 403 403 403 422
GET /admin/additions/{id}                               403 403 403 403 403 404
POST /admin/additions/{id}/cancel                       403 403 403 403 403 404
GET /admin/additions/{id}/events                        403 403 403 403 403 404
GET /admin/audit                                        403 403 403 403 403 200
GET /admin/catalogue                                    403 403 403 403 403 200
GET /admin/config                                       403 403 403 403 403 200
POST /admin/config/check                                403 403 403 403 403 422
GET /admin/config/file                                  403 403 403 403 403 409
PUT /admin/config/file                                  403 403 403 403 403 422
GET /admin/config/schema                                403 403 403 403 403 200
GET /admin/conversations                                200 200 200 200 200 200
POST /admin/conversations                               403 422 422 422 422 422
DELETE /admin/conversations/{id}                        403 404 404 404 404 404
GET /admin/conversations/{id}                           404 404 404 404 404 404
PUT /admin/conversations/{id}                           403 422 422 422 422 422
GET /admin/history                                      403 403 403 403 403 200
GET /admin/hub                                          403 403 403 403 403 400
GET /admin/limits                                       200 200 200 200 200 200
GET /admin/machine                                      403 403 403 403 403 200
GET /admin/me                                           200 200 200 200 200 200
DELETE /admin/models/{owner}/{name}                     403 403 403 403 403 409
GET /admin/models/{owner}/{name}/entry                  403 403 403 403 403 409
DELETE /admin/models/{owner}/{name}/examples/{id}       403 403 403 403 403 204
PUT /admin/models/{owner}/{name}/examples/{id}          403 403 403 403 403 404
POST /admin/models/{owner}/{name}/load                  403 403 403 403 403 200
GET /admin/models/{owner}/{name}/logs                   403 403 403 403 403 200
GET /admin/models/{owner}/{name}/logs/events            403 403 403 403 403 200
POST /admin/models/{owner}/{name}/pin                   403 403 403 403 403 202
POST /admin/models/{owner}/{name}/unload                403 403 403 403 403 202
POST /admin/models/{owner}/{name}/unpin                 403 403 403 403 403 202
GET /admin/models/{owner}/{name}/update                 403 403 403 403 403 409
POST /admin/models/{owner}/{name}/update                403 403 403 403 403 409
GET /admin/nodes                                        403 403 403 403 403 200
DELETE /admin/nodes/{name}/drain                        403 403 403 403 403 404
POST /admin/nodes/{name}/drain                          403 403 403 403 403 404
GET /admin/predictions                                  200 200 200 200 200 200
GET /admin/predictions.csv                              200 200 200 200 200 200
GET /admin/predictions.jsonl                            200 200 200 200 200 200
DELETE /admin/predictions/{id}                          403 404 404 404 404 404
GET /admin/predictions/{id}                             404 404 404 404 404 404
POST /admin/predictions/{id}/cancel                     403 404 404 404 404 404
POST /admin/proposals                                   403 403 403 403 403 422
POST /admin/reload                                      403 403 403 403 403 400
GET /admin/residency                                    403 403 403 403 403 200
GET /admin/status                                       200 200 200 200 200 200
GET /admin/sessions                                     200 200 200 200 200 200
DELETE /admin/sessions/{id}                             403 404 404 404 404 404
GET /admin/sign-in                                      200 200 200 200 200 200
POST /admin/sign-in/password                            403 403 403 403 403 403
POST /admin/sign-in/provider                            403 403 403 403 403 403
POST /admin/sign-in/provider/callback                   403 403 403 403 403 403
POST /admin/signins                                     204 204 204 204 204 204
POST /admin/signouts                                    204 204 204 204 204 204
GET /admin/tokens                                       403 403 403 403 403 200
POST /admin/tokens                                      403 403 403 403 403 201
DELETE /admin/tokens/{id}                               403 403 403 403 403 404
GET /admin/usage                                        200 200 200 200 200 200
GET /admin/usage.csv                                    200 200 200 200 200 200
POST /admin/webhooks/secret                             403 403 403 403 403 201
POST /admin/weights/prune                               403 403 403 403 403 422
GET /admin/weights/unused                               403 403 403 403 403 409
POST /anthropic/v1/messages                             403 400 404 404 400 400
POST /anthropic/v1/messages/count_tokens                403 400 404 404 400 400
GET /anthropic/v1/models                                200 200 200 200 200 200
GET /anthropic/v1/models/{model:path}                   400 400 404 404 400 400
GET /docs                                               200 200 200 200 200 200
GET /docs/{asset}                                       404 404 404 404 404 404
GET /healthz                                            200 200 200 200 200 200
GET /metrics                                            200 200 403 403 403 200
POST /openai/v1/audio/speech                            403 400 400 400 400 400
POST /openai/v1/audio/transcriptions                    403 400 400 400 400 400
POST /openai/v1/audio/translations                      403 400 400 400 400 400
POST /openai/v1/chat/completions                        403 400 404 404 400 400
POST /openai/v1/completions                             403 400 404 404 400 400
POST /openai/v1/embeddings                              403 400 400 400 400 400
POST /openai/v1/images/edits                            403 400 400 400 400 400
POST /openai/v1/images/generations                      403 400 404 404 400 400
GET /openai/v1/models                                   200 200 200 200 200 200
GET /openai/v1/models/{model:path}                      400 400 404 404 400 400
POST /openai/v1/rerank                                  403 400 400 400 400 400
POST /openai/v1/responses                               403 400 404 404 400 400
DELETE /openai/v1/responses/{id}                        403 404 404 404 404 404
GET /openai/v1/responses/{id}                           404 404 404 404 404 404
POST /openai/v1/responses/{id}/cancel                   403 404 404 404 404 404
GET /openai/v1/responses/{id}/input_items               404 404 404 404 404 404
POST /openai/v2/rerank                                  403 400 400 400 400 400
GET /openapi.json                                       200 200 200 200 200 200
GET /outputs/{id}/{name}                                404 404 404 404 404 404
GET /readyz                                             200 200 200 200 200 200
GET /v1/account                                         200 200 200 200 200 200
GET /v1/builds                                          200 200 200 200 200 200
GET /v1/builds/{id}                                     404 404 404 404 404 404
POST /v1/builds/{id}/cancel                             403 403 403 403 403 404
GET /v1/collections                                     200 200 200 200 200 200
GET /v1/collections/{slug}                              404 404 404 404 404 404
GET /v1/deployments                                     200 200 200 200 200 200
POST /v1/deployments                                    403 422 422 422 422 422
DELETE /v1/deployments/{owner}/{name}                   403 404 404 404 404 404
GET /v1/deployments/{owner}/{name}                      404 404 404 404 404 404
PATCH /v1/deployments/{owner}/{name}                    403 404 404 404 404 404
POST /v1/deployments/{owner}/{name}/predictions         403 404 404 404 404 404
GET /v1/files                                           200 200 200 200 200 200
POST /v1/files                                          403 400 400 400 400 400
GET /v1/files/stream/{token}                            404 404 404 404 404 404
DELETE /v1/files/{id}                                   403 404 404 404 404 404
GET /v1/files/{id}                                      404 404 404 404 404 404
GET /v1/files/{id}/download                             404 404 404 404 404 404
GET /v1/hardware                                        200 200 200 200 200 200
GET /v1/models                                          200 200 200 200 200 200
POST /v1/models                                         403 201 403 403 403 422
QUERY /v1/models                                        200 200 200 200 200 200
DELETE /v1/models/{owner}/{name}                        403 400 404 404 400 400
GET /v1/models/{owner}/{name}                           200 200 404 404 200 200
PATCH /v1/models/{owner}/{name}                         403 400 404 404 400 400
GET /v1/models/{owner}/{name}/examples                  200 200 404 404 200 200
POST /v1/models/{owner}/{name}/predictions              403 201 404 404 201 201
GET /v1/models/{owner}/{name}/readme                    404 404 404 404 404 404
GET /v1/models/{owner}/{name}/versions                  200 200 404 404 200 200
POST /v1/models/{owner}/{name}/versions                 403 403 403 403 403 422
DELETE /v1/models/{owner}/{name}/versions/{id}          403 404 404 404 404 404
GET /v1/models/{owner}/{name}/versions/{id}             404 404 404 404 404 404
POST /v1/models/{owner}/{name}/versions/{id}/trainings  403 422 422 422 422 422
POST /v1/models/{version}/predictions                   403 201 422 422 201 201
GET /v1/openapi.json                                    200 200 200 200 200 200
GET /v1/predictions                                     200 200 200 200 200 200
POST /v1/predictions                                    403 201 422 422 201 201
GET /v1/predictions/{id}                                404 404 404 404 404 404
POST /v1/predictions/{id}/cancel                        403 404 404 404 404 404
GET /v1/search                                          200 200 200 200 200 200
GET /v1/streams/{token}                                 404 404 404 404 404 404
GET /v1/trainings                                       200 200 200 200 200 200
GET /v1/trainings/{id}                                  404 404 404 404 404 404
POST /v1/trainings/{id}/cancel                          403 404 404 404 404 404
GET /v1/webhooks/default/secret                         403 200 200 200 200 200
"""
#: What the route parameters stand for.
PARAMETERS: Final = {"owner": "test", "name": "echo", "model": "test/echo", "stream": "x"}
#: A body for all routes of OpenAI's and Anthropic's API: each uses some of the fields.
COMPAT: Final = {
    "model": "test/echo",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 1,
    "prompt": "x",
    "input": "x",
    "query": "x",
    "documents": ["x"],
    "voice": "x",
}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/predictions": {"version": "test/echo", "input": {}},
    "/v1/models/{owner}/{name}/predictions": {"input": {}},
    "/v1/models/{version}/predictions": {"input": {}},
    "/v1/models/{owner}/{name}/versions/{id}/trainings": {"input": {}, "destination": "me/x"},
    "/v1/models": {"owner": "me", "name": "made", "visibility": "private", "hardware": "cpu"},
    "/admin/tokens": {"name": "made"},
}


def path_of(template: str, bench: Bench) -> str:
    path = template.replace("{model:path}", "{model}")
    values = {**PARAMETERS, "version": bench.echo.version}
    parts = []
    for part in path.split("/"):
        name = part[1:-1] if part.startswith("{") else None
        parts.append(part if name is None else values.get(name, "x"))
    return "/".join(parts)


def body_of(method: str, template: str) -> dict[str, Any]:
    if method not in {"POST", "PUT", "PATCH", "QUERY"}:
        return {}
    return COMPAT if template.startswith(("/openai/", "/anthropic/")) else BODIES.get(template, {})


async def status_of(api: Api, method: str, path: str, body: dict[str, Any], secret: str | None) -> int:
    """Return the status of a response without waiting for the body, because some bodies are endless."""
    answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    received = False

    async def receive() -> dict[str, Any]:
        nonlocal received
        if received:
            await asyncio.Event().wait()
        received = True
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start" and not answered.done():
            answered.set_result(message["status"])

    headers = [(b"host", b"models.example.org"), (b"content-type", b"application/json")]
    if secret is not None:
        headers.append((b"authorization", f"Bearer {secret}".encode()))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"query=echo" if path.endswith(("/search", "/hub")) else b"",
        "headers": headers,
        "scheme": "http",
        "client": ("192.0.2.1", 1234),
        "server": ("models.example.org", 80),
        "root_path": "",
        "http_version": "1.1",
    }
    running = asyncio.ensure_future(create_api(api.services)(scope, receive, send))
    try:
        return await asyncio.wait_for(answered, 60)  # for hangs
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def add_secrets(api: Api, bench: Bench) -> dict[str, str | None]:
    """Create the tokens of all callers; return their secrets."""
    now = time.time()
    secrets = await add_callers(api, bench, expired={"expires_at": now - 1}, revoked={"revoked_at": now - 1})
    user = User(name="user", scope=Scope.ADMIN, created_at=0, issuer="https://id.example.org", subject="1")
    ended = Session(
        id="ended",
        user="user",
        digest=token.digest(f"{PREFIX}ended"),
        created_at=now - 2,
        expires_at=now - 1,
        address="",
        browser="",
    )
    await bench.store.users.sign_in(user, ended, lambda known: AuditEvent(action="session.sign_in"))
    return {"nobody": None, "ended session": f"{PREFIX}ended", **secrets}


EXPECTED: Final = {
    (method, template): dict(zip(CALLERS, map(int, statuses), strict=True))
    for method, template, *statuses in map(str.split, MATRIX.strip().splitlines())
}
ROUTES: Final = [
    (method, route.path)
    for route in application.ROUTES
    for method in sorted((route.methods or set()) - {"HEAD"})
]


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    assert set(ROUTES) == set(EXPECTED), "add the route to MATRIX, or remove its row"


@pytest.mark.parametrize(("method", "template"), ROUTES)
async def test_each_caller_gets_the_status_of_the_matrix(
    api: Api, bench: Bench, method: str, template: str
) -> None:
    secrets = await add_secrets(api, bench)
    await api.services.webhooks.start()
    path, body = path_of(template, bench), body_of(method, template)
    expected = EXPECTED[method, template]
    if template in OPEN:
        expected = {**dict.fromkeys(REFUSED, expected["admin"]), **expected}
    elif template in CHECKED_IF_GIVEN:
        expected = {**REFUSED, "nobody": expected["admin"], **expected}
    else:
        expected = {**REFUSED, **expected}
    found = {name: await status_of(api, method, path, body, secrets[name]) for name in expected}
    assert found == expected
