"""Renders the output of a prediction as HTML. Pure; text from a model is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

from appliance.ui.media import gallery, medium

_PROGRESS: Final = re.compile(r"(\d{1,3})%\|")


class RenderedOutput(StrEnum):
    """The kinds of output that pages tell apart."""

    TEXT = "text"
    FILES = "files"
    DATA = "data"  # any JSON value, perhaps with files in it


def kind_of(document: Mapping[str, Any]) -> RenderedOutput:
    """Return the kind of a version's output, from its OpenAPI document."""
    schemas = document["components"]["schemas"]
    schema = schemas.get("Output", {})
    schema = schemas.get(str(schema.get("$ref", "")).rpartition("/")[2], schema)
    if schema.get("type") == "array":
        many = schema.get("x-cog-array-type") == "iterator"
        schema = schema.get("items", {})
        if schema.get("type") == "string" and schema.get("format") != "uri":
            return RenderedOutput.TEXT if many else RenderedOutput.DATA
    if schema.get("type") != "string":
        return RenderedOutput.DATA
    return RenderedOutput.FILES if schema.get("format") == "uri" else RenderedOutput.TEXT


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


def media(output: Any) -> str:
    """The files of an output as HTML: pictures, players, downloads; what is elsewhere is linked only."""
    return gallery(
        medium(address, number) or _elsewhere(address) for number, address in enumerate(addresses(output), 1)
    )


def _elsewhere(address: str) -> str:
    source = html.escape(address)
    return f'<p><a href="{source}" target="_blank" rel="noopener noreferrer">{source}</a></p>'


def progress(logs: str) -> int | None:
    """How far the last progress bar in the logs is, in percent."""
    found = _PROGRESS.findall(logs[-4000:])
    return min(int(found[-1]), 100) if found else None
