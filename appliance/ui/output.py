"""What a prediction gave, as something to look at. Pure; whatever a model said is escaped."""

from __future__ import annotations

import html
import mimetypes
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

_PROGRESS: Final = re.compile(r"(\d{1,3})%\|")
_DATA: Final = re.compile(r"data:([a-z0-9.+/-]+)[;,]", re.IGNORECASE)


class Output(StrEnum):
    """What the output of a model is."""

    TEXT = "text"
    FILES = "files"
    DATA = "data"  # any JSON value, perhaps with files in it


def kind_of(document: Mapping[str, Any]) -> Output:
    """What a version's output is, by its OpenAPI document."""
    schemas = document["components"]["schemas"]
    schema = schemas.get("Output", {})
    schema = schemas.get(str(schema.get("$ref", "")).rpartition("/")[2], schema)
    if schema.get("type") == "array":
        many = schema.get("x-cog-array-type") == "iterator"
        schema = schema.get("items", {})
        if schema.get("type") == "string" and schema.get("format") != "uri":
            return Output.TEXT if many else Output.DATA
    if schema.get("type") != "string":
        return Output.DATA
    return Output.FILES if schema.get("format") == "uri" else Output.TEXT


def text_of(output: Any) -> str:
    """Output that is text, whole or in pieces."""
    match output:
        case None:
            return ""
        case str():
            return output
        case list():
            return "".join(part for part in output if isinstance(part, str))
    return str(output)


def addresses(output: Any) -> Iterator[str]:
    """Every address of a file in an output."""
    match output:
        case str() if output.startswith(("http://", "https://", "data:")):
            yield output
        case list():
            for part in output:
                yield from addresses(part)
        case dict():
            yield from addresses(list(output.values()))


def media(output: Any, origin: str) -> str:
    """The files of an output as HTML: pictures, players, links; what is elsewhere is linked only."""
    made = "".join(_medium(address, origin, number) for number, address in enumerate(addresses(output), 1))
    return f'<div class="made">{made}</div>' if made else ""


def _medium(address: str, origin: str, number: int) -> str:
    inline = _DATA.match(address)
    ours = address.startswith(f"{origin}/")
    path = "" if inline else urlsplit(address).path
    kind = inline[1].lower() if inline else mimetypes.guess_type(path)[0] or ""
    name = f"output {number}" if inline else unquote(PurePosixPath(path).name) or address
    source = html.escape(address.removeprefix(origin) if ours else address)
    label = html.escape(name)
    if not ours and not inline:
        return f'<p><a href="{source}" target="_blank" rel="noopener noreferrer">{source}</a></p>'
    keep = f'<a href="{source}" download="{label}">Download {label}</a>'
    match kind.partition("/")[0]:
        case "image":
            shown = f'<a href="{source}" target="_blank"><img src="{source}" alt="{label}"></a>'
        case "audio":
            shown = f'<audio controls preload="metadata" src="{source}"></audio>'
        case "video":
            shown = f'<video controls preload="metadata" playsinline src="{source}"></video>'
        case _:
            shown = ""
    return f"<figure>{shown}<figcaption>{keep}</figcaption></figure>"


def progress(logs: str) -> int | None:
    """How far the last progress bar in the logs is, in percent."""
    found = _PROGRESS.findall(logs[-4000:])
    return min(int(found[-1]), 100) if found else None
