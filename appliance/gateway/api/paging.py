"""Pages of lists, and the cursors in their URLs: positions in a list, as text."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Unpack
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from appliance.domain.errors import FieldProblem, InvalidInput, NotFound
from appliance.domain.prediction import Prediction
from appliance.gateway.api import requests, responses
from appliance.gateway.api.services import services_of
from appliance.protocols import serializers
from appliance.store import Cursor, Filter

PAGE: Final = 100
_MAX_PLACES: Final = 10**9


def encode(cursor: Cursor) -> str:
    packed = struct.pack(">?d", cursor.backwards, cursor.created_at) + cursor.id.encode()
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(text: str) -> Cursor:
    """Return the cursor that ``encode`` wrote as ``text``.

    Raises:
        NotFound: ``text`` is not a cursor.
    """
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        backwards, created_at = struct.unpack_from(">?d", packed)
        return Cursor(created_at, packed[9:].decode(), backwards)
    except (binascii.Error, struct.error, ValueError) as error:
        raise NotFound("Invalid cursor") from error


def window(cursor: Cursor | None, names: Sequence[str], size: int) -> tuple[int, int]:
    """Return the slice of ``names`` that is the page at ``cursor``: its begin and its end.

    ``cursor.id`` is the last name of the preceding page; if the cursor is ``backwards``, it is the first name
    of the following page. ``cursor.created_at`` is the index of that name, which is used if the name is no
    longer in the list. The end may be greater than the number of names.

    Raises:
        NotFound: the cursor belongs to another list.
    """
    if cursor is None:
        return 0, size
    try:
        at = names.index(cursor.id)
        behind = at + 1
    except ValueError:
        if not 0 <= cursor.created_at <= _MAX_PLACES:
            raise NotFound("Invalid cursor") from None
        at = behind = int(cursor.created_at)
    return (max(0, at - size), at) if cursor.backwards else (behind, behind + size)


def page_url(request: Request, base: str, cursor: Cursor) -> str:
    """Return the URL of the page at ``cursor``: this request's URL with another cursor."""
    parameters = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
    return f"{base}{request.url.path}?{urlencode([*parameters, ('cursor', encode(cursor))])}"


async def of_predictions(
    request: Request,
    owner: str | None,
    shown: Callable[[Prediction, str], object],
    *,
    size: int | None = None,
    search: str | None = None,
    **filters: Unpack[Filter],
) -> Response:
    """Return a page of predictions of ``owner`` (None: of all owners), newest first.

    ``size`` is the number of predictions on a page. ``filters`` narrow the list further than the query
    parameters that every list has. With ``search``, a page has the predictions that contain this text; it may
    be short or empty although there is a next page, because one search looks at a limited number.

    Raises:
        NotFound: the cursor is not valid, or the parent does not exist.
        InvalidInput: another parameter is not valid.
    """
    base = requests.base_url(request)
    size = size or PAGE
    given = request.query_params.get("cursor")
    cursor = decode(given) if given else None
    backwards = cursor is not None and cursor.backwards
    narrowed = narrowed_by(request, filters)
    stopped: Cursor | None = None
    if search is None:
        found = [*await services_of(request).engine.list(owner, cursor=cursor, limit=size + 1, **narrowed)]
    else:
        found, stopped = await searched(request, owner, search, cursor, size + 1, narrowed)
    more = len(found) > size
    page = found[-size:] if backwards else found[:size]
    older: Cursor | None = _place(page[-1], back=False) if page and (more or backwards) else None
    newer: Cursor | None = _place(page[0], back=True) if page and (more or not backwards) else None
    if cursor is None:
        newer = None
    if stopped is not None and not more:
        older, newer = (older, stopped) if backwards else (stopped, newer)
    body = serializers.page(
        [shown(record, base) for record in page],
        next=None if older is None else page_url(request, base, older),
        previous=None if newer is None else page_url(request, base, newer),
    )
    return responses.json(body, base=base)


def _place(record: Prediction, *, back: bool) -> Cursor:
    return Cursor(record.created_at, record.id, back)


def narrowed_by(request: Request, filters: Filter) -> Filter:
    """Return ``filters`` with those in the query parameters that every list has.

    Raises:
        InvalidInput: a parameter is not valid.
    """
    return {
        **filters,
        "source": requests.one_of(request, "source", ("api", "web")),
        "parent": request.query_params.get("parent"),
        "created_after": instant(request, "created_after"),
        "created_before": instant(request, "created_before"),
    }


async def searched(
    request: Request, owner: str | None, text: str, cursor: Cursor | None, limit: int, filters: Filter
) -> tuple[list[Prediction], Cursor | None]:
    """Return predictions that contain ``text``, and where the search stopped; None if it is complete."""
    services = services_of(request)
    found = await services.store.search(owner, text, cursor=cursor, limit=limit, **filters)
    return [*services.engine.current(found.predictions)], found.stopped


def instant(request: Request, key: str) -> float | None:
    """Return an ISO 8601 query parameter in Unix seconds. A time without an offset is in UTC."""
    text = request.query_params.get(key)
    if not text:
        return None
    try:
        # A "+" that was not escaped arrives as a space.
        found = datetime.fromisoformat(
            text.strip().replace(" +", "+").replace(" ", "+" if "T" in text else " ")
        )
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidInput([FieldProblem("format", key, "Does not match format 'date-time'")]) from error
