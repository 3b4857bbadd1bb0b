"""A bucket of Amazon S3 or of an S3-compatible server, which stores the content of files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from appliance.config import S3Config
from appliance.config.redact import HIDDEN
from appliance.domain.errors import ApplianceError, BucketUnavailable, ObjectNotFound

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3CredentialProvider

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 32  # reads at the same time; others wait
_MOST_WAITING: Final = 64  # reads that wait for a thread; further ones fail at once if the bucket hangs
_HANGS: Final = 10.0  # seconds without a successful read after which a bucket with many reads hangs
_CONNECT_TIMEOUT: Final = timedelta(seconds=5)
_READ_TIMEOUT: Final = timedelta(seconds=10)  # for one range
_WRITE_TIMEOUT: Final = timedelta(seconds=120)  # for one part of an upload
_PART: Final = 8 * 1024 * 1024  # bytes of an upload that are sent in one request
_MOST_PARTS: Final = 9000  # S3 allows 10,000
_PARTS_AT_ONCE: Final = 2
_FIRST_RANGE: Final = 128 * 1024  # bytes read at the beginning, which may be all that is needed
_RANGE: Final = 2 * 1024 * 1024  # bytes read at once afterwards
_LONGEST_ERROR: Final = 300  # characters
#: Environment variables with the keys of requests, if models.yaml has none.
_VARIABLES: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
#: The body of an error response, see https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.
_ANSWER: Final = re.compile(r"(<\?xml[^>]*>\s*)?<Error\b.*", re.DOTALL)
_SHOWN_TAGS: Final = tuple(re.compile(f"<{tag}>([^<]*)</{tag}>") for tag in ("Code", "Message"))


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
        for name, value in _keys(config).items():
            if not (value.isascii() and value.isprintable()):  # the client library would panic
                text = f"{name} has a line end or another character that keys do not have: remove it"
                raise ApplianceError(f"files.s3 in models.yaml: {text}")
        self._secrets = [value for name, value in _keys(config).items() if "id" not in name.lower()]
        self._obstore = obstore
        self.url = config.url
        self._endpoint = config.endpoint
        self._reading = self._store(config, _READ_TIMEOUT, retries=1)
        self._writing = self._store(config, _WRITE_TIMEOUT, retries=2)
        self._threads = _Threads()
        self._free = asyncio.Semaphore(_THREADS)
        self._waiting = 0  # calls of `run` that wait for a free thread
        self._running = 0
        self._answered = 0.0  # when a read last succeeded, or the first of the present ones began

    def _store(self, config: S3Config, timeout: timedelta, *, retries: int) -> Any:
        settings = {
            "endpoint": config.endpoint,
            "region": config.region,
        }
        try:
            return self._obstore.store.S3Store(
                config.bucket,
                prefix=config.prefix or None,
                config={name: value for name, value in settings.items() if value is not None},  # type: ignore[arg-type]
                client_options={"allow_http": True, "timeout": timeout, "connect_timeout": _CONNECT_TIMEOUT},
                retry_config={"max_retries": retries, "retry_timeout": timeout},
                credential_provider=_credentials(config),
            )
        except self._obstore.exceptions.BaseError as error:
            reason = _one_line(error)
            if "No CA certificates" in str(error):
                reason = "the system has no CA certificates: install ca-certificates, or set SSL_CERT_FILE"
            raise ApplianceError(f"files.s3 in models.yaml: {reason}") from error

    def close(self) -> None:
        self._threads.close()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that reads from the bucket in a thread of the bucket.

        Threads that wait for a slow bucket cannot hold up work that the gateway does in other threads.

        Raises:
            BucketUnavailable: many reads wait already, and none has succeeded for 10 seconds.

        Other errors are those of the function.
        """
        if self._waiting >= _MOST_WAITING and time.monotonic() - self._answered > _HANGS:
            raise BucketUnavailable(
                f"{self.url}: {_THREADS} reads have not ended and {self._waiting} wait: "
                "check that the server of the bucket answers"
            )
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        loop = asyncio.get_running_loop()
        result: Future[T] = Future()

        if self._running == 0:
            self._answered = time.monotonic()
        self._running += 1

        def free(*, answered: bool) -> None:
            self._running -= 1
            if answered:
                self._answered = time.monotonic()
            self._free.release()

        def ended(done: Future[T]) -> None:
            answered = not done.cancelled() and not isinstance(done.exception(), BucketUnavailable)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(partial(free, answered=answered))

        result.add_done_callback(ended)  # a thread is free when it ends, even if the caller was cancelled
        self._threads.submit(result, lambda: function(*args, **kwargs))
        return await asyncio.wrap_future(result)

    async def check(self) -> None:
        """Write, read and delete a small object.

        Raises:
            BucketUnavailable: the object could not be written, read or deleted.
        """
        path = ".check"
        with self._errors():
            await self._obstore.put_async(self._reading, path, b"appliance")
            await self._obstore.get_range_async(self._reading, path, start=0, end=1)
            await self._obstore.delete_async(self._reading, path)

    async def write(self, path: str, content: bytes) -> None:
        """Write a small object.

        Raises:
            BucketUnavailable: the object may not be in the bucket.
        """
        with self._errors():
            await self._obstore.put_async(self._writing, path, content)

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
            ObjectNotFound: the object, or the bucket, does not exist.
            BucketUnavailable: the object cannot be read.
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
        # ValueError: the client library reports some errors with it, such as control characters in a key.
        except (found.BaseError, OSError, ValueError) as error:
            kind = BucketUnavailable
            if isinstance(error, found.NotFoundError | FileNotFoundError):
                kind = ObjectNotFound
                advice = "check the name of the bucket in files.s3.url of models.yaml"
            elif isinstance(error, found.PermissionDeniedError | found.UnauthenticatedError):
                advice = "check the access key, and that it may read, write and delete objects of the bucket"
            else:
                advice = "check files.s3 in models.yaml, and that the server of the bucket answers"
            place = self.url if self._endpoint is None else f"{self.url} at {self._endpoint}"
            reason = _one_line(error)
            for secret in self._secrets:
                reason = reason.replace(secret, HIDDEN)
            raise kind(f"{place}: {reason}: {advice}") from error


class _Threads:
    """Up to ``_THREADS`` threads.

    Unlike the threads of ThreadPoolExecutor, these do not delay the end of the process.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count = 0

    def submit(self, result: Future[T], function: Callable[[], T]) -> None:
        """Call ``function`` in a thread, and put what it returns or raises into ``result``."""

        def call() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                result.set_result(function())
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                result.set_exception(error)

        self._calls.put(call)
        if self._count < _THREADS:
            self._count += 1
            Thread(target=self._run, name=f"bucket {self._count}", daemon=True).start()

    def close(self) -> None:
        """End the threads after the calls that were submitted."""
        for _ in range(self._count):
            self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # otherwise its result would be kept until the next call


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


def _credentials(config: S3Config) -> S3CredentialProvider | None:
    """Return the keys in models.yaml, which never have a session token; None without keys there.

    The client library would add ``AWS_SESSION_TOKEN`` to keys in its config.
    """
    id, secret = config.access_key_id, config.secret_access_key
    if id is None or secret is None:
        return None
    found: S3Credential = {
        "access_key_id": id,
        "secret_access_key": secret,
        "token": None,
        "expires_at": None,
    }
    return lambda: found


def _keys(config: S3Config) -> dict[str, str]:
    """Return the values with which requests are signed, by the names of their keys and variables."""
    if config.access_key_id is not None and config.secret_access_key is not None:
        return {"access_key_id": config.access_key_id, "secret_access_key": config.secret_access_key}
    return {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}


def _one_line(error: Exception) -> str:
    """Return an error of the client library in one line, without its debug output.

    If the server sent an error response, only its code and message are kept.
    """
    text = str(error).partition("\n\nDebug source")[0]
    if (answer := _ANSWER.search(text)) is not None:
        parts = [found[1] for tag in _SHOWN_TAGS if (found := tag.search(answer[0])) is not None]
        text = text[: answer.start()] + ": ".join(parts)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."
