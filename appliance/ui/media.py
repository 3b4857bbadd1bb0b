"""A file that a prediction took or made, as something to look at. Pure; whatever a model said is escaped."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable
from html import escape
from pathlib import PurePosixPath
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

_OUTPUTS: Final = "/outputs/"
_DATA: Final = re.compile(r"data:([a-z0-9.+/-]+)[;,]", re.IGNORECASE)


class _File(NamedTuple):
    kind: str  # its media type; empty where nobody knows
    name: str
    source: str  # what a page finds it at
    inline: bool


def medium(address: str, number: int = 1) -> str:
    """HTML of a file of this appliance, or one that is in the address itself; nothing for any other text.

    Only such files are shown: an address elsewhere would tell that server who looks at this page. ``number``
    is for one that has no name. A link to data is one to keep it: browsers open no page from data.
    """
    file = _file(address, number)
    if file is None:
        return ""
    source, label = escape(file.source), escape(file.name)
    match file.kind.partition("/")[0]:
        case "image":
            shown = f'<img src="{source}" alt="{label}" loading="lazy">'
            if not file.inline:
                shown = f'<a href="{source}" target="_blank">{shown}</a>'
        case "audio":
            shown = f'<audio controls preload="metadata" src="{source}"></audio>'
        case "video":
            shown = f'<video controls preload="metadata" playsinline src="{source}"></video>'
        case _:
            shown = ""
    keep = f'<a href="{source}" download="{label}">Download {label}</a>'
    return f"<figure>{shown}<figcaption>{keep}</figcaption></figure>"


def picture(address: str) -> str | None:
    """Return the URL of the file for an ``img`` element, if it is an image."""
    file = _file(address, 1)
    return file.source if file is not None and file.kind.startswith("image/") else None


def gallery(figures: Iterable[str]) -> str:
    """HTML of media side by side; nothing of none."""
    made = "".join(figures)
    return f'<div class="made">{made}</div>' if made else ""


def _file(address: str, number: int) -> _File | None:
    inline = _DATA.match(address)
    if inline:
        return _File(inline[1].lower(), f"file {number}", address, inline=True)
    path = _ours(address)
    if path is None:
        return None
    return _File(mimetypes.guess_type(path)[0] or "", unquote(PurePosixPath(path).name), path, inline=False)


def _ours(address: str) -> str | None:
    """The path of one of our files. Its host does not count: behind a proxy we have more than one name."""
    if not address.startswith(("http://", "https://")):
        return None
    try:
        path = urlsplit(address).path
    except ValueError:
        return None
    return path if path.startswith(_OUTPUTS) else None
