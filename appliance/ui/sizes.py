"""Sizes in bytes as pages show them."""

from __future__ import annotations

from appliance.domain import units
from appliance.ui import languages

#: Characters around a text from left to right in a sentence from right to left (Unicode UAX #9).
_ISOLATE, _END = "\u2066", "\u2069"


def readable_bytes(size: float) -> str:
    """Return a size with its unit, such as "12.4 GiB".

    In a language that is written from right to left, characters around it keep the order of number and unit.
    """
    text = units.readable_bytes(size)
    return f"{_ISOLATE}{text}{_END}" if languages.direction() == "rtl" else text
