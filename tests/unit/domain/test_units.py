from __future__ import annotations

import pytest

from appliance.domain.units import readable_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (2048, "2.0 KiB"),
        (5 * 1024**2, "5.0 MiB"),
        (3 * 1024**5, "3072.0 TiB"),
    ],
)
def test_sizes_have_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert readable_bytes(count) == text
