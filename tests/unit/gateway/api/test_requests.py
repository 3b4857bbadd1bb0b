"""Bodies that are almost JSON: served where that is right, else refused in words that say what to do."""

from __future__ import annotations

import gzip

import pytest

from tests.support.api_client import Api

PATH = "/v1/models/test/echo/predictions"


async def test_a_byte_order_mark_is_no_part_of_the_body(api: Api) -> None:
    body = b'\xef\xbb\xbf{"input": {"text": "x"}}'
    assert (await api.post(PATH, content=body)).status_code == 201


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"input": {"repeat": ' + b"1" * 5000 + b"}}", "a number in it is out of range, because it has"),
        (b'{"input": {"repeat": 1e400}}', "input.repeat must be a finite number"),
        (b'{"input": {"text": "\\ud800"}}', r"half of a surrogate pair (\ud800 to \udfff), which is no"),
        (b'{"input": {"text": "\\ud800 x"}}', r"half of a surrogate pair (\ud800 to \udfff), which is no"),
        (b'{"input": {"text": "\\udc00"}}', r"half of a surrogate pair (\ud800 to \udfff), which is no"),
        (b'{"input": {"text": "\xed\xa0\x80"}}', "text in it is not UTF-8"),
        ('{"input": {}}'.encode("utf-16"), "it is UTF-16; send it as UTF-8"),
        (gzip.compress(b'{"input": {}}', mtime=0), "it is compressed with gzip; send it uncompressed"),
        (b'{"input": {"text": "x"', "Input data was truncated"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_no_json_is_refused_with_the_reason(shared_api: Api, body: bytes, reason: str) -> None:
    for path in (PATH, "/openai/v1/embeddings", "/anthropic/v1/messages"):
        reply = await shared_api.post(path, content=body)
        assert reply.status_code == 400, reply.text
        told = reply.json()
        detail = told["detail"] if "detail" in told else told["error"]["message"]
        assert detail.startswith("The request body is not valid JSON: ")
        assert reason in detail


@pytest.mark.parametrize("path", [PATH, "/v1/files", "/openai/v1/images/edits", "/anthropic/v1/messages"])
async def test_a_compressed_body_is_refused_before_it_is_read(api: Api, path: str) -> None:
    body = gzip.compress(b'{"input": {"text": "x"}}', mtime=0)
    for encoding in ("gzip", "br, gzip"):
        reply = await api.post(path, content=body, headers={"content-encoding": encoding})
        assert reply.status_code == 400
        assert f"content encoding {encoding}, which is not supported: send it uncompressed" in reply.text


async def test_a_float_beyond_exact_integers_is_a_mistake_of_the_client(api: Api) -> None:
    body = {"source": "x", "memory": -9007199254740994.0}
    reply = await api.post("/v1/models/test/echo/versions", json=body)
    assert reply.status_code == 422
    assert [each["field"] for each in reply.json()["invalid_fields"]] == ["memory"]
