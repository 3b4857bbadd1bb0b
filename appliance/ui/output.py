"""Convert the output of a prediction to text or HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from markupsafe import Markup

from appliance.protocols.api_client import file_urls
from appliance.ui import markup

_PROGRESS: Final = re.compile(r"(\d{1,3})%\|")


class RenderedOutput(StrEnum):
    """The kinds of output, by how pages show them."""

    TEXT = "text"
    FILES = "files"
    DATA = "data"  # any JSON value, perhaps with files in it


def kind_of(document: Mapping[str, Any]) -> RenderedOutput:
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
    """Return text output as one string; the pieces of an iterator's output are joined."""
    match output:
        case None:
            return ""
        case str():
            return output
        case list():
            return "".join(part for part in output if isinstance(part, str))
    return str(output)


def files(output: Any) -> Markup:
    """Return the files of an output as images, players and downloads; other servers' URLs are links."""
    return markup.gallery(
        markup.figure(url, number) or Markup("<p>{}</p>").format(markup.foreign_link(url, url))
        for number, url in enumerate(file_urls(output), 1)
    )


def progress(logs: str) -> int | None:
    found = _PROGRESS.findall(logs[-4000:])
    return min(int(found[-1]), 100) if found else None
