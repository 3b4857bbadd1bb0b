"""A bucket of Amazon S3, or of a server with its API, that has the content of files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from appliance.config import S3Config
from appliance.domain.errors import ApplianceError, BucketUnavailable

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 32  # reads at the same time; others wait
_CONNECT_TIMEOUT: Final = timedelta(seconds=5)
_READ_TIMEOUT: Final = timedelta(seconds=10)  # for one range
_WRITE_TIMEOUT: Final = timedelta(seconds=120)  # for one part of an upload
_PART: Final = 8 * 1024 * 1024  # bytes of an upload that are sent in one request
_MOST_PARTS: Final = 9000  # S3 allows 10,000
_PARTS_AT_ONCE: Final = 2
_FIRST_RANGE: Final = 128 * 1024  # bytes read at the beginning, which may be all that is needed
_RANGE: Final = 2 * 1024 * 1024  # bytes read at once afterwards
_LONGEST_ERROR: Final = 300  # characters


class Bucket:
    """Writes, reads and deletes objects. Objects never change, so a reader needs no lock.

    ``path`` is always relative to the folder of files, such as ``uploads/abc``; the key of the object is the
    path below the prefix.
    """

    def __init__(self, config: S3Config) -> None:
        """Connect to nothing yet.

        Raises:
            ApplianceError: the client library is not installed, or the settings do not fit together.
        """
        try:
            import obstore
        except ImportError as error:
            text = "files.s3 in models.yaml needs the package obstore: install appliance[s3]"
            raise ApplianceError(text) from error
        self._obstore = obstore
        self.url = config.url
        self._endpoint = config.endpoint
        self._reading = self._store(config, _READ_TIMEOUT, retries=1)
        self._writing = self._store(config, _WRITE_TIMEOUT, retries=2)
        self._threads = ThreadPoolExecutor(_THREADS, "bucket")

    def _store(self, config: S3Config, timeout: timedelta, *, retries: int) -> Any:
        settings = {
            "endpoint": config.endpoint,
            "region": config.region,
            "access_key_id": config.access_key_id,
            "secret_access_key": config.secret_access_key,
        }
        try:
            return self._obstore.store.S3Store(
                config.bucket,
                prefix=config.prefix or None,
                config={name: value for name, value in settings.items() if value is not None},  # type: ignore[arg-type]
                client_options={"allow_http": True, "timeout": timeout, "connect_timeout": _CONNECT_TIMEOUT},
                retry_config={"max_retries": retries, "retry_timeout": timeout},
            )
        except self._obstore.exceptions.BaseError as error:
            reason = _first_line(error)
            if "No CA certificates" in str(error):
                reason = "the system has no CA certificates: install ca-certificates, or set SSL_CERT_FILE"
            raise ApplianceError(f"files.s3 in models.yaml: {reason}") from error

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that reads from the bucket in a thread of the bucket.

        Threads that wait for a slow bucket cannot hold up work that the gateway does in other threads.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def check(self) -> None:
        """Write, read and delete a small object.

        Raises:
            BucketUnavailable: one of these failed.
        """
        path = ".check"
        with self._errors():
            await self._obstore.put_async(self._reading, path, b"appliance")
            await self._obstore.get_range_async(self._reading, path, start=0, end=1)
            await self._obstore.delete_async(self._reading, path)

    async def upload(self, path: str, file: Path) -> None:
        """Write the content of ``file`` to the bucket in parts; it is never whole in memory.

        Raises:
            BucketUnavailable: the object is not complete in the bucket.
            OSError: the file cannot be read.
        """
        size = (await asyncio.to_thread(file.stat)).st_size
        part = max(_PART, -(-size // _MOST_PARTS))
        with file.open("rb") as content, self._errors():
            await self._obstore.put_async(
                self._writing, path, content, chunk_size=part, max_concurrency=_PARTS_AT_ONCE
            )
            written = (await self._obstore.head_async(self._reading, path))["size"]
        if written != size:
            raise BucketUnavailable(
                f"{self.url}: the object {path} has {written} bytes after the upload of {size} bytes"
            )

    async def delete(self, path: str) -> None:
        """Delete an object; one that does not exist is no error.

        Raises:
            BucketUnavailable: the object may still exist.
        """
        with self._errors():
            await self._obstore.delete_async(self._writing, path)

    def open(self, path: str) -> BucketFile:
        """Open an object to read it. Call this, and the methods of the result, with ``run``.

        Raises:
            BucketUnavailable: the object cannot be read, or does not exist.
        """
        with self._errors():
            size = self._obstore.head(self._reading, path)["size"]
        return BucketFile(self, path, size)

    def read(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes of an object from ``start`` to before ``end``.

        Raises:
            BucketUnavailable: the object cannot be read.
        """
        with self._errors():
            data = bytes(self._obstore.get_range(self._reading, path, start=start, end=end))
        if len(data) != end - start:
            raise BucketUnavailable(f"{self.url}: the object {path} ends before byte {end}")
        return data

    @contextmanager
    def _errors(self) -> Iterator[None]:
        found = self._obstore.exceptions
        try:
            yield
        except (found.BaseError, OSError) as error:
            if isinstance(error, found.NotFoundError | FileNotFoundError):
                advice = "check the name of the bucket in files.s3.url of models.yaml"
            elif isinstance(error, found.PermissionDeniedError | found.UnauthenticatedError):
                advice = "check the access key, and that it may read, write and delete objects of the bucket"
            else:
                advice = "check files.s3 in models.yaml, and that the server of the bucket answers"
            place = self.url if self._endpoint is None else f"{self.url} at {self._endpoint}"
            raise BucketUnavailable(f"{place}: {_first_line(error)}: {advice}") from error


class BucketFile:
    """An object that is read like an open file, in ranges of at most a few MiB."""

    def __init__(self, bucket: Bucket, path: str, size: int) -> None:
        self._bucket = bucket
        self._path = path
        self.size = size
        self._position = 0
        self._start = 0  # position of the buffer in the object
        self._buffer = b""

    def seek(self, offset: int, /) -> int:
        self._position = offset
        return offset

    def read(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes, or fewer at the end of the object.

        Raises:
            BucketUnavailable: the object cannot be read.
        """
        end = min(self._position + size, self.size)
        pieces = []
        while self._position < end:
            if not self._start <= self._position < self._start + len(self._buffer):
                self._fill()
            offset = self._position - self._start
            piece = self._buffer[offset : offset + end - self._position]
            pieces.append(piece)
            self._position += len(piece)
        return b"".join(pieces)

    def close(self) -> None:
        self._buffer = b""

    def _fill(self) -> None:
        length = _RANGE if self._buffer else _FIRST_RANGE
        self._start = self._position
        self._buffer = self._bucket.read(self._path, self._start, min(self._start + length, self.size))


def _first_line(error: Exception) -> str:
    """Return an error of the client library in one line, without its technical appendix."""
    text = " ".join(str(error).partition("\n\nDebug source")[0].split())
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."
