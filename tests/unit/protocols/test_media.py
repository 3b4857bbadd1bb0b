"""Where requests point to pictures, in the words of each API."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from appliance.protocols import media

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
    ((place, key),) = media.urls(body)
    place[key] = "data:,x"
    assert list(media.urls(body)) == []
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
    assert list(media.urls(body)) == []


WRITTEN = "aGVs\nbG8_"  # two lines, not padded, in the alphabet for addresses
PLAIN = "aGVsbG8/"


def test_base64_is_rewritten_for_strict_readers() -> None:
    def body(data: str, url: str) -> dict[str, Any]:
        return {
            "messages": [
                {"content": [{"type": "image_url", "image_url": {"url": url}}]},
                {"content": [{"type": "input_image", "image_url": url}]},
                {"content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]},
                {"content": [{"type": "image", "source": {"type": "base64", "data": data}}]},
                {"content": f"data:image/png;base64,{WRITTEN}", "data": WRITTEN},
                {"image_url": {"url": "data:,a b"}, "audio_url": 7, "input_audio": None},
            ]
        }

    given = body(WRITTEN, f"DATA:image/png;BASE64,{WRITTEN.replace(chr(10), '%0A')}")
    media.make_base64_plain(given)
    assert given == body(PLAIN, f"data:image/png;base64,{PLAIN}")


@pytest.mark.parametrize("size", range(8))
def test_base64_is_read_however_it_is_written(size: int) -> None:
    content = bytes(range(248, 248 + size))
    plain = base64.b64encode(content).decode()
    for written in (plain, plain.rstrip("="), "\n".join(plain), base64.urlsafe_b64encode(content).decode()):
        assert media.from_base64(written) == content
        assert media.from_data(f"data:;base64,{written}") == ("", content)
        assert media.plain_base64(written) == plain


@pytest.mark.parametrize("wrong", ["?", "a", "aGVsb", "aGVsbG8?", "\u00e9aGV"])
def test_what_is_no_base64(wrong: str) -> None:
    with pytest.raises(ValueError, match="base64"):
        media.from_data(f"data:;base64,{wrong}")


def test_they_are_found_in_order() -> None:
    body = [{"image_url": f"http://{name}"} for name in "abc"]
    assert [place[key] for place, key in media.urls(body)] == ["http://a", "http://b", "http://c"]
