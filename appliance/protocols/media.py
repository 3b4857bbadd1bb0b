"""Images, audio and video in request bodies: their URLs and their base64."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes

_KEYS: Final = ("image_url", "audio_url", "video_url")
_STANDARD: Final = str.maketrans("-_", "+/")  # from the URL-safe alphabet


def urls(body: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the object and the key of each HTTP URL of media in ``body``."""
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
                if is_http_url(place[0].get(place[1])):
                    yield place
            if value.get("type") == "url" and is_http_url(value.get("url")):
                yield value, "url"


def from_data(url: str) -> tuple[str, bytes]:
    """Return the media type and the content of a ``data:`` URL.

    Raises:
        ValueError: the URL is malformed.
    """
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise ValueError("the data: URL has no comma before its data")
    kind, *parameters = head.split(";")
    if parameters and parameters[-1].strip().lower() == "base64":
        try:
            data = from_base64(unquote(body))
        except ValueError as error:
            raise ValueError(f"the base64 of the data: URL is invalid: {error}") from error
    else:
        data = unquote_to_bytes(body)
    return kind.strip().lower(), data


def from_base64(text: str) -> bytes:
    """Decode base64, with or without line breaks and padding, in either alphabet of RFC 4648.

    Raises:
        ValueError: ``text`` is not base64.
    """
    return base64.b64decode(plain_base64(text), validate=True)


def plain_base64(text: str) -> str:
    """Return base64 on one line, padded, and in the standard alphabet."""
    plain = "".join(text.split()).rstrip("=").translate(_STANDARD)
    return plain + "=" * (-len(plain) % 4)


def make_base64_plain(body: Any) -> None:
    """Apply ``plain_base64`` to all media in ``body``, in place, for decoders that are strict."""
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            for key in _KEYS:
                inner = value.get(key)
                holder, name = (inner, "url") if isinstance(inner, dict) else (value, key)
                if isinstance(holder.get(name), str):
                    holder[name] = _plain_url(holder[name])
            audio = value if value.get("type") == "base64" else value.get("input_audio")
            if isinstance(audio, dict) and isinstance(audio.get("data"), str):
                audio["data"] = plain_base64(audio["data"])


def _plain_url(url: str) -> str:
    head, comma, data = url.partition(",")
    if head[:5].lower() != "data:" or not head.lower().endswith(";base64"):
        return url
    return f"data:{head[5:-7]};base64{comma}{plain_base64(unquote(data))}"


def is_http_url(value: Any) -> bool:
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))
