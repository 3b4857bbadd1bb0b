"""The size of a model's weights."""

from __future__ import annotations

from typing import NamedTuple


class WeightSize(NamedTuple):
    """Size of all weight files of one model together."""

    stored: int = 0  # bytes
    parameters: int | None = None  # number of parameters; None if unknown
    quantized: bool = False  # the weights stay as stored, whatever the dtype to compute in

    @property
    def in_16_bits(self) -> int:
        """Bytes of the weights in a 16-bit dtype; the stored size if the number of parameters is unknown."""
        return self.stored if self.parameters is None else 2 * self.parameters

    @property
    def in_32_bits(self) -> int:
        return 2 * self.in_16_bits

    def on_each_of(self, machines: int, embeddings: int) -> WeightSize:
        """Return the largest share of the weights that one of ``machines`` machines can have.

        ``embeddings`` is the number of parameters of the input embeddings. The machines with the first and
        the last layers have embeddings in addition to their share.
        """
        if self.parameters is None:
            return self._replace(stored=self.stored // machines + 2 * embeddings)
        parameters = min(self.parameters, self.parameters // machines + embeddings)
        return self._replace(stored=self.stored * parameters // self.parameters, parameters=parameters)
