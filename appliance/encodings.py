"""Content encodings of HTTP answers: nothing is decompressed before its size is limited.

httpx decompresses whatever an answer says it is, in memory, as often as it says so: 3 kB of ``gzip, gzip``
become gigabytes. So clients ask for ``identity``, and what comes encoded nevertheless is refused, or decoded
here in pieces.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

import httpx

#: What every client of the appliance sends.
IDENTITY: Final = {"accept-encoding": "identity"}
_PIECE: Final = 1024 * 1024  # bytes that one step of decoding gives at most


def of(answer: httpx.Response) -> str:
    """The content encoding of an answer; ``identity`` where it names none."""
    return answer.headers.get("content-encoding", "").strip().lower() or "identity"


def refuse(answer: httpx.Response) -> None:
    """Event hook of a client: refuse an encoded answer before anything reads it.

    Raises:
        httpx.DecodingError: the answer is encoded.
    """
    if of(answer) != "identity":
        raise httpx.DecodingError(
            f"{answer.request.url.host} answered with the content encoding {of(answer)[:40]}, "
            "although identity was asked for",
            request=answer.request,
        )


async def refuse_later(answer: httpx.Response) -> None:
    """The same hook for a client that is asynchronous."""
    refuse(answer)


class Decoder:
    """Takes the bytes of an answer as they come, and gives its content in pieces of at most 1 MiB."""

    def __init__(self, encoding: str) -> None:
        """``encoding`` is what the answer says.

        Raises:
            ValueError: it is neither ``identity`` nor ``gzip``, which storage services send unasked for
                objects that are stored so.
        """
        if encoding not in {"identity", "gzip", "x-gzip"}:
            raise ValueError(f"its content encoding {encoding[:40]} is not supported: serve it without one")
        self._gzip = None if encoding == "identity" else zlib.decompressobj(16 + zlib.MAX_WBITS)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The content in ``data``; the caller stops when it has had enough.

        Raises:
            ValueError: the data is damaged.
        """
        if self._gzip is None:
            yield data
            return
        while data:
            if self._gzip.eof:  # a file may be several that follow each other (RFC 1952, section 2.2)
                self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
            try:
                piece = self._gzip.decompress(data, _PIECE)
            except zlib.error as error:
                raise ValueError(f"its gzip data is damaged: {error}") from error
            data = self._gzip.unconsumed_tail or self._gzip.unused_data
            yield piece

    def end(self) -> None:
        """Nothing more comes.

        Raises:
            ValueError: the data breaks off.
        """
        if self._gzip is not None and not self._gzip.eof:
            raise ValueError("its gzip data breaks off")
