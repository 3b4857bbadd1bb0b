"""Search of a text in rows of predictions, without decoding their inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.store.queries import COLUMNS
from appliance.store.records import Cursor
from appliance.store.rows import Row

_ID, _CREATED_AT = COLUMNS.index("id"), COLUMNS.index("created_at")
_ERROR, _OUTPUT = COLUMNS.index("error"), COLUMNS.index("output")
_INPUT: Final = len(COLUMNS)  # the input is the column after all others


def matcher(text: str) -> Callable[[Row], bool]:
    """Return a function that tells whether a row contains ``text``, in upper or lower case.

    The strings in an encoded value are its UTF-8 bytes, so they can be searched without decoding the value.
    The bytes between two strings belong to no text, except if a length happens to be the code of a letter.
    """
    wanted = text.casefold()
    encoded = wanted.encode(errors="replace") if text.isascii() else None

    def within(value: bytes | str | None) -> bool:
        if value is None:
            return False
        if isinstance(value, str):
            return wanted in value.casefold()
        if encoded is not None:
            return encoded in value.lower()
        return wanted in value.decode(errors="replace").casefold()

    def contains(row: Row) -> bool:
        return row[_ID] == text or within(row[_ERROR]) or within(row[_INPUT]) or within(row[_OUTPUT])

    return contains


def size(row: Row) -> int:
    """Return the length of a row's input and output."""
    return len(row[_INPUT]) + len(row[_OUTPUT] or b"")


def position(row: Row, *, backwards: bool) -> Cursor:
    """Return the cursor of the page after the row, in the direction of the search."""
    return Cursor(row[_CREATED_AT], row[_ID], backwards)
