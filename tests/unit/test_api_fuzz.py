"""Whatever is sent, the answer is the contract's JSON and never a fault of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance import token
from appliance.api import create_api
from appliance.config import Config
from appliance.token import Token
from tests.apis import services_of
from tests.engines import Bench

CONFIG = Config.model_validate({"models": [{"name": "test/echo", "kind": "echo"}]})
SERVED = (
    ("POST", "/v1/predictions"),
    ("POST", "/v1/models/test/echo/predictions"),
    ("POST", "/v1/models/test/stream/predictions"),
    ("POST", f"/v1/models/{'0' * 64}/predictions"),
    ("GET", "/v1/predictions"),
    ("GET", "/v1/predictions/{}"),
    ("POST", "/v1/predictions/{}/cancel"),
    ("GET", "/v1/models"),
    ("QUERY", "/v1/models"),
    ("GET", "/v1/models/{}/{}"),
    ("GET", "/v1/models/test/echo/versions/{}"),
    ("GET", "/v1/models/test/echo/{}"),
    ("GET", "/v1/collections/{}"),
    ("GET", "/v1/search"),
    ("GET", "/v1/streams/{}"),
    ("GET", "/v1/{}"),
    ("GET", "/admin/{}"),
)
METHODS = ("GET", "POST", "QUERY", "DELETE", "PATCH", "PUT", "HEAD", "OPTIONS")

text = st.text(st.characters(codec="utf-8"), max_size=20)
segment = text.map(lambda part: quote(part, safe="") or "x")
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
right = st.fixed_dictionaries(
    {}, optional={"text": text, "repeat": st.integers(1, 3), "fail": text, "progress": st.integers(0, 3)}
)
inputs = right | st.dictionaries(
    st.sampled_from(["text", "repeat", "progress", "fail", "delay"]) | text,
    json_value.filter(lambda value: not isinstance(value, int | float)) | st.integers(-1, 2),
    max_size=4,
)
prediction = st.fixed_dictionaries(
    {"input": inputs | inputs | json_value},
    optional={
        "version": st.sampled_from(["test/echo", "test/stream", "test/echo:latest", "0" * 64]) | json_value,
        "webhook": st.sampled_from(["https://example.org", "http://10.0.0.1", "http://["]) | json_value,
        "webhook_events_filter": st.lists(st.sampled_from(["start", "end"])) | json_value,
        "stream": json_value,
        "extra": json_value,
    },
)
body = st.binary(max_size=60) | (prediction | prediction | json_value).map(
    lambda value: json.dumps(value).encode()
)
header_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
headers = st.dictionaries(
    st.sampled_from(["Prefer", "Cancel-After", "Content-Type", "Last-Event-ID", "Origin", "Host", "X-Any"]),
    header_text | st.sampled_from(["respond-async", "wait=x", "5s", "1h", "1:3"]),
    max_size=3,
)
query = st.dictionaries(
    st.sampled_from(["cursor", "query", "limit", "sort_by", "created_after", "created_before"]) | text,
    text | st.sampled_from(["AAAA", "1", "2024-01-01", "2024-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"]),
    max_size=3,
)


class Fuzzed:
    """An API on a loop of its own, so that one serves every example."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.client = self.runner.run(self._start(folder))

    async def _start(self, folder: Path) -> httpx.AsyncClient:
        self.bench = bench = await Bench(folder).start()
        for name in ("known", "other"):
            await bench.store.add_token(
                Token(id=name, name=name, owner=name, digest=token.digest(name), created_at=0)
            )
        services = services_of(bench)
        self.webhooks = services.webhooks
        await self.webhooks.start()
        transport = httpx.ASGITransport(create_api(services))
        return httpx.AsyncClient(
            transport=transport, base_url="http://test", headers={"Authorization": "Bearer known"}
        )

    async def _stop(self) -> None:
        await self.client.aclose()
        await self.webhooks.close()
        await self.bench.stop()
        await self.bench.cluster.close()

    def close(self) -> None:
        self.runner.run(self._stop())
        self.runner.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    fuzzed = Fuzzed(tmp_path_factory.mktemp("fuzz"))
    yield fuzzed
    fuzzed.close()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    served=st.sampled_from(SERVED),
    other=st.none() | st.none() | st.none() | st.sampled_from(METHODS),
    segments=st.lists(segment, min_size=2, max_size=2),
    body=body,
    headers=headers,
    query=query,
)
def test_every_answer_is_one_of_the_contract(
    api: Fuzzed,
    served: tuple[str, str],
    other: str | None,
    segments: list[str],
    body: bytes,
    headers: dict[str, str],
    query: dict[str, Any],
) -> None:
    method, template = other or served[0], served[1]
    url = httpx.URL(f"{template.format(*segments)}?{urlencode(query)}")
    reply = api.runner.run(api.client.request(method, url, content=body, headers=headers))
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400 and method != "HEAD":
        problem = reply.json()
        assert isinstance(problem["detail"], str)
        assert problem["detail"]
        assert problem["status"] == reply.status_code
    assert "Traceback" not in reply.text
