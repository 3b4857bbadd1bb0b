"""Where requests point to pictures, in the words of each API."""

from __future__ import annotations

from typing import Any

import pytest

from appliance import media

WEB = "https://example.org/x.png"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": WEB}},  # chat completions
        {"type": "audio_url", "audio_url": {"url": WEB}},
        {"type": "input_image", "image_url": WEB},  # responses
        {"type": "image", "source": {"type": "url", "url": WEB}},  # messages
        {"type": "image_url", "image_url": {"url": "HTTP://EXAMPLE.ORG"}},
    ],
)
def test_addresses_are_found_and_can_be_replaced(part: dict[str, Any]) -> None:
    body = {"messages": [{"content": "x"}, {"content": [{"type": "text", "text": WEB}, part]}]}
    ((place, key),) = media.addresses(body)
    place[key] = "data:,x"
    assert list(media.addresses(body)) == []
    assert "data:,x" in repr(part)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"content": WEB}], "url": WEB},
        {"messages": [{"content": [{"image_url": {"url": "data:,x"}}]}]},
        {"tools": [{"image_url": None}, {"image_url": 7}, {"image_url": {"detail": "low"}}]},
        {},
    ],
)
def test_what_is_no_address_of_a_picture(body: dict[str, Any]) -> None:
    assert list(media.addresses(body)) == []


def test_they_are_found_in_order() -> None:
    body = [{"image_url": f"http://{name}"} for name in "abc"]
    assert [place[key] for place, key in media.addresses(body)] == ["http://a", "http://b", "http://c"]
