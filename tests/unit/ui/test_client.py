"""The client with which pages call the API."""

from __future__ import annotations

import httpx

from appliance.ui.client import Caller


async def test_all_pages_of_a_list_are_read_each_once() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path.decode())
        first = "cursor" not in request.url.params
        next_url = "https://example.org/ai/v1/models?cursor=b&sort_by=name" if first else None
        return httpx.Response(200, json={"results": [1, 2] if first else [3], "next": next_url})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://api") as http:
        caller = Caller(http, "token", "https://example.org/ai")
        assert await caller.all_pages("/v1/models", sort_by="name", limit=None) == [1, 2, 3]
    assert asked == ["/v1/models?sort_by=name", "/v1/models?cursor=b&sort_by=name"]
