"""Content encodings of HTTP responses: no response is decompressed without a limit on its size.

httpx applies every content encoding that a response names, in memory: 3 kB of ``gzip, gzip`` become
gigabytes. So clients ask for ``identity``. A response that is encoded nevertheless is refused, or decoded
in pieces by ``Decoder``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

import httpx

#: Headers that every HTTP client of the appliance sends.
IDENTITY: Final = {"accept-encoding": "identity"}
_PIECE: Final = 1024 * 1024  # the most bytes that one step of decoding returns


def of(answer: httpx.Response) -> str:
    """The content encoding of a response; ``identity`` if it names none."""
    return answer.headers.get("content-encoding", "").strip().lower() or "identity"


def refuse(answer: httpx.Response) -> None:
    """Event hook for httpx clients: refuse an encoded response before its body is read.

    Raises:
        httpx.DecodingError: the response is encoded.
    """
    if of(answer) != "identity":
        raise httpx.DecodingError(
            f"{answer.request.url.host} answered with the content encoding {of(answer)[:40]}, "
            "although identity was asked for",
            request=answer.request,
        )


async def refuse_later(answer: httpx.Response) -> None:
    """The same hook for asynchronous clients."""
    refuse(answer)


class Decoder:
    """Decodes the body of a response incrementally, in pieces of at most 1 MiB."""

    def __init__(self, encoding: str) -> None:
        """``encoding`` is the content encoding that the response names.

        Raises:
            ValueError: it is neither ``identity`` nor ``gzip``. Storage services send objects that are stored
                as gzip in that encoding, even if the request did not ask for it.
        """
        if encoding not in {"identity", "gzip", "x-gzip"}:
            raise ValueError(f"its content encoding {encoding[:40]} is not supported: serve it without one")
        self._gzip = None if encoding == "identity" else zlib.decompressobj(16 + zlib.MAX_WBITS)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded content of ``data``; the caller may stop at its own limit.

        Raises:
            ValueError: the data is damaged.
        """
        if self._gzip is None:
            yield data
            return
        while data:
            if self._gzip.eof:  # gzip data may have several members (RFC 1952, section 2.2)
                self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
            try:
                piece = self._gzip.decompress(data, _PIECE)
            except zlib.error as error:
                raise ValueError(f"its gzip data is damaged: {error}") from error
            data = self._gzip.unconsumed_tail or self._gzip.unused_data
            yield piece

    def end(self) -> None:
        """Check that the data is complete; call it after the last ``feed``.

        Raises:
            ValueError: the data is truncated.
        """
        if self._gzip is not None and not self._gzip.eof:
            raise ValueError("its gzip data is truncated")
