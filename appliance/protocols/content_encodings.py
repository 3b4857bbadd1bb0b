"""Content encodings of HTTP responses, decompressed only with a limit on the size.

httpx decodes all content encodings of a response in memory, and 3 kB of ``gzip, gzip`` can become gigabytes.
So clients request ``identity``; other responses are refused, or decoded in pieces by ``Decoder``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

import httpx

#: Headers of all requests that the appliance sends.
IDENTITY: Final = {"accept-encoding": "identity"}
_PIECE: Final = 1024 * 1024  # maximum bytes of a decoded piece


def of(response: httpx.Response) -> str:
    """Return the content encoding of a response; ``identity`` if the response names none."""
    return response.headers.get("content-encoding", "").strip().lower() or "identity"


def refuse(response: httpx.Response) -> None:
    """Event hook for httpx clients: refuse an encoded response before its body is read.

    Raises:
        httpx.DecodingError: the response is encoded.
    """
    if of(response) != "identity":
        sent = f"{response.request.url.host} sent the content encoding {of(response)[:40]}"
        raise httpx.DecodingError(f"{sent}, but identity was requested", request=response.request)


async def refuse_async(response: httpx.Response) -> None:
    """Event hook for asynchronous httpx clients: call ``refuse``."""
    refuse(response)


class Decoder:
    """Decodes the body of a response incrementally, in pieces of at most 1 MiB."""

    def __init__(self, encoding: str) -> None:
        """``encoding`` is the content encoding that the response names.

        Raises:
            ValueError: the encoding is neither ``identity`` nor ``gzip``. Storage services send objects that
                are stored in gzip as they are, whatever the request accepts.
        """
        if encoding not in {"identity", "gzip", "x-gzip"}:
            raise ValueError(
                f"its content encoding {encoding[:40]} is not supported: serve the file uncompressed"
            )
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
        """Check, after the last ``feed``, that the data is complete.

        Raises:
            ValueError: the data is truncated.
        """
        if self._gzip is not None and not self._gzip.eof:
            raise ValueError("its gzip data is truncated")
