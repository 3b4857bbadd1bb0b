"""Files in the input or output of a prediction, as a page may show them."""

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
    url: str  # for a page of this appliance
    inline: bool  # whether the URL contains the data; browsers open no page for such a URL


def media_file(url: str, number: int = 1) -> MediaFile | None:
    """Return the file of this appliance, or the data, at ``url``; None for any other text.

    A URL of another server gives None: loading the file would tell that server who opens the page.
    ``number`` is part of the name of data.
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
    """Return the URL for an ``img`` element, or None if there is no image that a page may show."""
    file = media_file(url)
    return file.url if file is not None and file.kind.startswith("image/") else None


def _own_path(url: str) -> str | None:
    """Return the path of an output file. Any host will do: behind a proxy the appliance has several names."""
    if not url.startswith(("http://", "https://")):
        return None
    try:
        path = urlsplit(url).path
    except ValueError:
        return None
    return path if path.startswith(_OUTPUTS) else None
