"""Short texts that show inputs and outputs in lists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from appliance.domain.file import OutputFile

#: Characters of a preview.
LENGTH: Final = 200
_LINKS: Final = ("http://", "https://", "data:")


def preview(value: Any, length: int = LENGTH) -> str:
    """Return the beginning of a JSON value as one line of text; empty for null.

    Files of an output are shown by their names. An object with a single key is shown without the
    key. A list of strings is joined, because streamed output is such a list.
    """
    found, size = [], 0
    for piece in _pieces(value):
        found.append(piece[: 4 * length])  # spaces are merged below
        size += len(found[-1])
        if size > 4 * length:
            break
    text = " ".join("".join(found).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _pieces(value: Any) -> Iterator[str]:
    match value:
        case None:
            return
        case OutputFile():
            yield value.name
        case dict():
            for number, (name, inner) in enumerate(value.items()):
                if len(value) > 1:
                    yield f"{', ' if number else ''}{name}: "
                yield from _pieces(inner)
        case list():
            streamed = all(isinstance(part, str) and not part.startswith(_LINKS) for part in value[:3])
            for number, inner in enumerate(value):
                if number and not streamed:
                    yield ", "
                yield from _pieces(inner)
        case _:
            yield str(value).lower() if isinstance(value, bool) else str(value)
