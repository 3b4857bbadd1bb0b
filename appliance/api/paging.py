"""Cursors: a place in a list, as text that clients hand back unread."""

from __future__ import annotations

import base64
import binascii
import struct
from urllib.parse import urlencode

from starlette.requests import Request

from appliance.errors import NotFound
from appliance.store import Cursor


def encode(cursor: Cursor) -> str:
    """The cursor as URL-safe text."""
    packed = struct.pack(">?d", cursor.backwards, cursor.created_at) + cursor.id.encode()
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(text: str) -> Cursor:
    """The cursor that ``encode`` wrote.

    Raises:
        NotFound: it did not.
    """
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        backwards, created_at = struct.unpack_from(">?d", packed)
        return Cursor(created_at, packed[9:].decode(), backwards)
    except (binascii.Error, struct.error, ValueError) as error:
        raise NotFound("Invalid cursor") from error


def address(request: Request, base: str, cursor: Cursor) -> str:
    """The address of the page at ``cursor``: this request's, with its other parameters kept."""
    parameters = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
    return f"{base}{request.url.path}?{urlencode([*parameters, ('cursor', encode(cursor))])}"
