"""The content of a stored file that was opened, wherever it lies, decrypted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.gateway.files.bucket import Bucket
    from appliance.gateway.files.encrypted_file import ContentReader, FileCipher


class OpenContent:
    """Content that stays readable if its file is moved to the bucket or deleted on the disk meanwhile."""

    def __init__(self, reader: ContentReader, bucket: Bucket | None) -> None:
        """Read with ``reader``; ``bucket`` is the bucket in which the content lies, None for the disk."""
        self.size = reader.size
        self._reader = reader
        self._run = asyncio.to_thread if bucket is None else bucket.run

    async def pieces(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the content from byte ``start`` to before byte ``end``, in small pieces.

        Raises:
            OSError: the file cannot be read.
            StoreError: the file is damaged.
            BucketUnavailable: the bucket does not answer.
        """
        pieces = self._reader.pieces(start, self.size if end is None else end)
        while (piece := await self._run(next, pieces, None)) is not None:
            yield piece

    async def read(self) -> bytes:
        """Return the whole content; the errors are those of ``pieces``."""
        return await self._run(lambda: b"".join(self._reader.pieces(0, self.size)))

    async def copy_to(self, target: Path) -> None:
        """Write the content to the new file ``target``; it is never whole in memory.

        Raises:
            OSError: a file cannot be read or written. The other errors are those of ``pieces``.
        """
        # In pieces, so that a large file does not keep a thread of the bucket from all other reads.
        with await asyncio.to_thread(target.open, "xb") as file:
            async for piece in self.pieces():
                await asyncio.to_thread(file.write, piece)

    def close(self) -> None:
        self._reader.close()


def open_local(path: Path, cipher: FileCipher | None) -> ContentReader:
    """Open a file on the disk.

    Raises:
        OSError: the file cannot be read.
    """
    if cipher is not None:
        return cipher.open(path)
    from appliance.gateway.files.encrypted_file import PlainReader  # imports a large library

    file = path.open("rb")
    return PlainReader(file, os.fstat(file.fileno()).st_size)


def open_remote(bucket: Bucket, path: str, cipher: FileCipher | None) -> ContentReader:
    """Open an object in the bucket.

    Raises:
        ObjectNotFound: the object, or the bucket, does not exist.
        BucketUnavailable: the object cannot be read.
    """
    from appliance.gateway.files.encrypted_file import PlainReader  # imports a large library

    file = bucket.open(path)
    if cipher is not None:
        return cipher.reader(file, file.size, Path(path))
    return PlainReader(file, file.size)
