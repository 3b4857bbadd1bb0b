"""The links in responses, which may begin with a path that the client's own base URL lacks."""

from __future__ import annotations

import pytest

from appliance.protocols import api_client


@pytest.mark.parametrize("base", ["http://127.0.0.1:8000", "https://public.example/ai", "https://x/v1/v1"])
def test_links_are_joined_with_the_base_url_of_the_client(base: str) -> None:
    page = f"{base}/v1/models/v1/echo/versions?cursor=a%2Bb&source=api"
    next_page = "/v1/models/v1/echo/versions?cursor=a%2Bb&source=api"
    assert api_client.next_page("/v1/models/v1/echo/versions", page) == next_page
    assert api_client.next_page("/v1/models/v1/echo/versions?source=api", page) == next_page
    assert api_client.stream_path(f"{base}/v1/streams/secret?after=1") == "/v1/streams/secret?after=1"
    assert api_client.stream_path(f"{base}/v1/files/stream/secret") == "/v1/files/stream/secret"
