"""How large a model's weights are."""

from __future__ import annotations

from typing import NamedTuple


class WeightSize(NamedTuple):
    """Of all weight files of one model."""

    stored: int = 0  # bytes
    numbers: int | None = None  # that the files hold, where all of them say it

    @property
    def in_16_bits(self) -> int:
        """Bytes with each number in 16 bits, as they are taken to be stored where that is not known."""
        return self.stored if self.numbers is None else 2 * self.numbers

    @property
    def in_32_bits(self) -> int:
        """Bytes with each number in 32 bits."""
        return 2 * self.in_16_bits
