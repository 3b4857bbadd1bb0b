"""Decide which files in the input or output of a prediction a page may show."""

from __future__ import annotations

import mimetypes
import re
from pathlib import PurePosixPath
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

_OUTPUTS: Final = "/outputs/"
_DATA: Final = re.compile(r"data:([a-z0-9.+/-]+)[;,]", re.IGNORECASE)


class MediaFile(NamedTuple):
    """A file that a page shows or offers as a download."""

    kind: str  # its media type, or empty if that is unknown
    name: str
    url: str  # for a page of this appliance: relative to its <base>, or a data URL
    inline: bool  # whether the URL contains the data; browsers open no page for such a URL


def media_file(url: str, number: int = 1) -> MediaFile | None:
    """Return the file at ``url``, which is an output file's URL or a data URL; None for any other text.

    URLs of other servers give None, because loading a file would tell that server who opens the page.
    ``number`` is part of the shown name of a data URL.
    """
    inline = _DATA.match(url)
    if inline:
        return MediaFile(inline[1].lower(), f"file {number}", url, inline=True)
    path = _own_path(url)
    if path is None:
        return None
    return MediaFile(
        mimetypes.guess_type(path)[0] or "", unquote(PurePosixPath(path).name), path, inline=False
    )


def image_url(url: str) -> str | None:
    """Return a URL for the ``src`` of an ``img`` element; None if ``url`` may not be shown as an image."""
    file = media_file(url)
    return file.url if file is not None and file.kind.startswith("image/") else None


def _own_path(url: str) -> str | None:
    """Return the path of an output file's URL, relative to the URL of the appliance.

    The host and what precedes that path are not checked: behind proxies they vary.
    """
    if not url.startswith(("http://", "https://")):
        return None
    try:
        path = urlsplit(url).path
    except ValueError:
        return None
    at = path.rfind(_OUTPUTS)
    return None if at < 0 else f".{path[at:]}"
