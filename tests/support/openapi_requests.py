"""Requests made up from the served OpenAPI document, right and wrong ones, and an API to send them to."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import httpx
from hypothesis import strategies as st

from appliance.domain import token
from appliance.domain.token import Scope, Token
from appliance.gateway.api import create_api, openapi
from appliance.store import VersionRow
from tests.support.api_client import services_of
from tests.support.engine_bench import Bench

DOCUMENT = openapi.document()
METHODS = ("GET", "POST", "QUERY", "DELETE", "PATCH", "PUT", "HEAD", "OPTIONS")
#: Routes that are no operations of the document.
BESIDE = (
    ("GET", "/v1/streams/{id}"),
    ("GET", "/v1/files/stream/{id}"),
    ("POST", "/v1/models/{id}/predictions"),
    ("GET", "/outputs/{id}/{name}"),
    ("GET", "/docs/{name}"),
    ("GET", "/v1/{name}"),
    ("GET", "/admin/{name}"),
    ("POST", "/admin/models/{owner}/{name}/load"),
    ("PUT", "/admin/models/{owner}/{name}/examples/{id}"),
)

text = st.text(st.characters(codec="utf-8"), max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
header_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
headers = st.dictionaries(
    st.sampled_from(
        ["Prefer", "Cancel-After", "Content-Type", "Last-Event-ID", "Origin", "Host", "Range", "X-Any"]
    ),
    header_text | st.sampled_from(["respond-async", "wait=x", "5s", "1h", "1:3", "bytes=0-1", "bytes=9-"]),
    max_size=3,
)
#: Inputs of the echo models that end at once; those that take time or crash are other tests' business.
_inputs = st.fixed_dictionaries(
    {},
    optional={"text": text, "repeat": st.integers(-1, 3), "fail": text, "progress": st.integers(0, 3) | text},
)
_FORM = (
    b'--xyz\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n'
    b"Content-Type: %s\r\n\r\n%s\r\n--xyz--\r\n"
)


class Case(NamedTuple):
    """One request."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str]


class World:
    """An API on a loop of its own, with something of everything in it."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.client = self.runner.run(self._start(folder))

    async def _start(self, folder: Path) -> httpx.AsyncClient:
        self.bench = bench = await Bench(folder).start()
        await bench.store.add_token(
            Token(
                id="known",
                name="known",
                owner="me",
                digest=token.digest("known"),
                created_at=0,
                scope=Scope.ADMIN,
            )
        )
        for entry in bench.catalogue.entries:
            await bench.store.record_version(
                VersionRow(id=entry.version, model=entry.name, created_at=1.0, document=entry.document)
            )
        self.services = services_of(bench)
        await self.services.webhooks.start()
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(create_api(self.services)),
            base_url="http://test",
            headers={"Authorization": "Bearer known"},
        )
        made = (await client.post("/v1/predictions", json={"version": "test/echo", "input": {}})).json()
        file = (await client.post("/v1/files", files={"content": b"x"})).json()
        model = {"owner": "me", "name": "mine", "visibility": "private", "hardware": "cpu"}
        await client.post("/v1/models", json=model)
        version = bench.echo.version
        deployment = {
            "name": "mine", "model": "test/echo", "version": version, "hardware": "cpu",
            "min_instances": 0, "max_instances": 1,
        }  # fmt: skip
        await client.post("/v1/deployments", json=deployment)
        self.known = {
            "owner": ["test", "me"],
            "name": ["echo", "stream", "files", "mine"],
            "id": [made["id"], file["id"], version, made["urls"]["stream"].rpartition("/")[2]],
            "slug": ["x"],
        }
        self.versions = ["test/echo", "test/files", "test/echo:latest", version]
        return client

    def send(self, case: Case) -> httpx.Response:
        """The answer."""
        return self.runner.run(
            self.client.request(case.method, httpx.URL(case.path), content=case.body, headers=case.headers)
        )

    async def _stop(self) -> None:
        await self.client.aclose()
        await self.services.webhooks.close()
        await self.bench.stop()
        await self.bench.cluster.close()

    def close(self) -> None:
        """Stop everything."""
        self.runner.run(self._stop())
        self.runner.close()


def check(case: Case, reply: httpx.Response) -> None:
    """Whatever was sent, the answer is the contract's."""
    assert reply.status_code < 500 or reply.status_code == 503, reply.text
    if reply.status_code >= 400 and case.method != "HEAD" and reply.status_code != 416:
        problem = reply.json()
        assert isinstance(problem["detail"], str)
        assert problem["detail"]
        assert problem["status"] == reply.status_code
    assert "Traceback" not in reply.text


def cases(world: World) -> st.SearchStrategy[Case]:
    """Requests to ``world``."""
    described = [
        (method.upper(), f"/v1{path}", operation)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
        if "servers" not in operation  # those are no operations of Replicate's API
    ]
    beside: list[tuple[str, str, dict[str, Any]]] = [(method, path, {}) for method, path in BESIDE]
    every = [*described, *beside]
    return st.integers(0, len(every) - 1).flatmap(lambda number: _case(world, *every[number]))


def _case(world: World, method: str, template: str, operation: dict[str, Any]) -> st.SearchStrategy[Case]:
    names = [part.partition("}")[0] for part in template.split("{")[1:]]
    segment = text.map(lambda part: quote(part, safe="") or "x")
    segments = st.tuples(*(_mostly(st.sampled_from(world.known[name]), segment) for name in names))
    path = segments.map(lambda given: template.format(**dict(zip(names, given, strict=True))))
    query = st.dictionaries(
        st.sampled_from(
            [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"] or ["x"]
        )
        | text,
        text | st.sampled_from(["AAAA", "1", "asc", "2024-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"]),
        max_size=3,
    )
    return st.builds(
        lambda other, path, query, body, headers: Case(
            other or method, f"{path}?{urlencode(query)}", body[0], {**headers, **body[1]}
        ),
        st.sampled_from([None] * 72 + list(METHODS)),
        path,
        query,
        _body(world, operation),
        headers,
    )


def _mostly(usual: st.SearchStrategy[Any], rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """``one_of`` would take the same strategy given twice for one."""
    return st.integers(0, 9).flatmap(lambda number: usual if number else rare)


def _plain(value: Any) -> tuple[bytes, dict[str, str]]:
    return (value if isinstance(value, bytes) else json.dumps(value).encode()), {}


def _body(world: World, operation: dict[str, Any]) -> st.SearchStrategy[tuple[bytes, dict[str, str]]]:
    junk = st.binary(max_size=60).map(_plain) | json_value.map(_plain)
    content = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content:
        field = st.sampled_from([b"content", b"metadata", b"type", b"metadata[a][b]"])
        small = st.binary(max_size=30)
        form = st.builds(
            lambda *parts: (_FORM % parts, {"Content-Type": "multipart/form-data; boundary=xyz"}),
            field,
            st.sampled_from([b"x.png", b"", b'a"b', b"../x", b"\xff"]),
            st.sampled_from([b"image/png", b"", b"text/html; x=y", b"nonsense", b"a/b\r\nX: y"]),
            small,
        )
        return _mostly(form, junk)
    if "application/json" not in content or "text/plain" in content:
        return junk
    schema = content["application/json"]["schema"]
    right = _of(schema, world).map(_plain)
    return _mostly(right, junk)


def _of(schema: dict[str, Any], world: World, name: str = "") -> st.SearchStrategy[Any]:
    """Values that fit, and now and then one that does not."""
    if "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    special: dict[str, st.SearchStrategy[Any]] = {
        "input": _inputs,
        "version": st.sampled_from(world.versions),
        "model": st.sampled_from(["test/echo", "test/stream"]),
        "owner": st.just("me"),
        "destination": st.sampled_from(["me/mine", "test/echo"]),
        "webhook": st.sampled_from(["https://example.org/x", "http://10.0.0.1", "http://["]),
    }
    fitting = special[name] if name in special else _fitting(schema, world)
    return _mostly(fitting, json_value)


def _fitting(schema: dict[str, Any], world: World) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of(*(_fitting(part, world) for part in schema["anyOf"]))
    match schema.get("type"):
        case "object" if "properties" in schema:
            parts = {name: _of(part, world, name) for name, part in schema["properties"].items()}
            required = schema.get("required", ())
            return st.fixed_dictionaries(
                {name: parts[name] for name in required},
                optional={name: part for name, part in parts.items() if name not in required},
            )
        case "array":
            return st.lists(_of(schema["items"], world), max_size=3)
        case "integer":
            return st.integers(schema.get("minimum", 0) - 1, schema.get("maximum", 20) + 1)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "string" if schema.get("format") == "uri":
            return st.sampled_from(["https://example.org", "nonsense", "data:,x", "javascript:x"])
        case "string":
            return st.sampled_from(["mine", "a", "A b", "x" * 101, "0" * 64]) | text
    return json_value


def environment_count(default: int) -> int:
    """How many requests to make: ``APPLIANCE_FUZZ_REQUESTS`` where more are wanted."""
    import os

    return int(os.environ.get("APPLIANCE_FUZZ_REQUESTS", default))
