"""Sizes in sentences from left to right and from right to left."""

from __future__ import annotations

from appliance.ui.sizes import readable_bytes
from tests.unit.ui.test_languages import using


def test_a_size_keeps_its_order_in_a_sentence_from_right_to_left() -> None:
    assert readable_bytes(3 * 2**30) == "3.0 GiB"
    with using("ar"):
        assert readable_bytes(3 * 2**30) == "\u20663.0 GiB\u2069"
