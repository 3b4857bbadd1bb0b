"""Where requests of OpenAI's and Anthropic's APIs point to pictures, sound and video on the web. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

_KEYS: Final = ("image_url", "audio_url", "video_url")
_WEB: Final = ("http://", "https://")


def addresses(body: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Each place in ``body`` that holds an address: an object and the key in it."""
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            waiting += reversed(value.values())
            for key in _KEYS:
                inner = value.get(key)
                place = (inner, "url") if isinstance(inner, dict) else (value, key)
                if _is_address(place[0].get(place[1])):
                    yield place
            if value.get("type") == "url" and _is_address(value.get("url")):
                yield value, "url"


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and value.lower().startswith(_WEB)
