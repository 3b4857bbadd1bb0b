"""Moves the content of files from the disk to the bucket of ``files.s3``, and deletes objects.

A file is moved after its row is committed. The order is: the table of objects says ``uploading``, the object
is written, the table says ``stored``, the local file is deleted. So content is always complete on the disk
or in the bucket, and the next start continues with every file that is still on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from appliance.domain.errors import (
    ApplianceError,
    BucketUnavailable,
    ContentMissing,
    ObjectNotFound,
    StoreError,
)
from appliance.gateway.files import bucket_mark
from appliance.gateway.files.bucket import Bucket
from appliance.gateway.files.open_content import open_remote
from appliance.store import RETRY_STORE
from appliance.store.bucket_objects import BUCKET_ID, VERSIONS
from appliance.store.files import FileTable

if TYPE_CHECKING:
    from appliance.gateway.files.encrypted_file import ContentReader, FileCipher

T = TypeVar("T")

_log = logging.getLogger(__name__)

_UPLOADS_AT_ONCE: Final = 4
_DELETIONS_AT_ONCE: Final = 8
_BATCH: Final = 200  # objects
_INTERVAL: Final = 30.0  # seconds between two looks for objects to delete, if nothing wakes the task
_SHORTEST, _LONGEST = 1.0, 15.0  # seconds between attempts, if the bucket does not answer
_SILENCE: Final = 600.0  # seconds between two log messages that the bucket does not answer
_PIECE: Final = 1024 * 1024  # bytes


class _Upload(msgspec.Struct, frozen=True):
    """A local file that is to be moved to the bucket."""

    path: str
    id: str  # of the file, or of the trained version
    encrypt_first: bool = False  # whether the file must be encrypted first
    keep: bool = False  # whether the local file stays, because models are loaded from it


class BucketTransfer:
    """Uploads and deletions in the background; used on the gateway's event loop only."""

    def __init__(self, bucket: Bucket, table: FileTable, folder: Path, cipher: FileCipher | None) -> None:
        self.bucket = bucket
        self._table = table
        self._objects = table.objects
        self._folder = folder
        self._cipher = cipher
        self._queue: asyncio.Queue[_Upload] = asyncio.Queue()
        self._known: set[str] = set()  # paths that are queued or in progress
        self._again: dict[str, _Upload] = {}  # added while they were in progress, by path
        self._active: set[str] = set()  # paths that are being uploaded
        self._deleted = asyncio.Event()
        self._pause = _SHORTEST
        self._reported: float | None = None  # when the log said that the bucket does not answer
        self._tasks: list[asyncio.Task[None]] = []
        self._checked = asyncio.Event()  # whether the bucket is the one of this appliance
        self._check: asyncio.Task[None] | None = None
        self._missing: set[str] = set()  # paths of missing objects that the log has named

    def start(self) -> None:
        """Upload what earlier runs have left on the disk, and start to upload and delete."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._check_for_ever()),
            loop.create_task(self._search()),
            loop.create_task(self._delete_for_ever()),
            *(loop.create_task(self._upload_for_ever()) for _ in range(_UPLOADS_AT_ONCE)),
        ]
        for task in self._tasks:
            task.add_done_callback(_ended)

    async def close(self) -> None:
        """Stop; the next start continues."""
        tasks = self._tasks if self._check is None else [*self._tasks, self._check]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.bucket.close()

    def add(self, path: str, id: str, *, encrypt_first: bool = False, keep: bool = False) -> None:
        """Upload a file soon. Its row must be committed.

        Args:
            path: the path relative to the folder of files.
            id: the id of the file, or of the trained version.
            encrypt_first: whether to wait until the file is encrypted.
            keep: whether to keep the local file.
        """
        upload = _Upload(path, id, encrypt_first, keep)
        if path in self._known:  # such as a version that was deleted and made again during the upload
            self._again[path] = upload
        else:
            self._known.add(path)
            self._queue.put_nowait(upload)

    async def add_version(self, version: str) -> None:
        """Upload the files of a trained version, and keep the local files."""
        paths = await asyncio.to_thread(self._files_below, f"{VERSIONS}{version}")
        await self._objects.begin_version(version, paths)
        for path in paths:
            self.add(path, version, keep=True)

    def wake(self) -> None:
        """Delete the objects of rows that were deleted, without waiting for the next regular time."""
        self._deleted.set()

    async def open(self, path: str) -> ContentReader:
        """Open an object, decrypted.

        Raises:
            ContentMissing: the object does not exist.
            BucketUnavailable: the object cannot be read, or the bucket is not the one of this appliance.
            StoreError: the database does not answer.
        """
        if not self._checked.is_set():
            await self._compare_once()
        return await self._existing(path, lambda: open_remote(self.bucket, path, self._cipher))

    async def download(self, path: str, target: Path) -> None:
        """Write the object at ``path`` to ``target``, as it is in the bucket.

        Raises:
            ContentMissing: the object does not exist.
            BucketUnavailable: the object cannot be read.
            OSError: the target cannot be written.
        """

        def copy() -> None:
            source = self.bucket.open(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                while piece := source.read(_PIECE):
                    file.write(piece)

        await self._existing(path, copy)

    async def _existing(self, path: str, read: Callable[[], T]) -> T:
        """Return the result of ``read``, which reads the object at ``path``.

        Raises:
            ContentMissing: the object does not exist.
            BucketUnavailable: the object cannot be read.
        """
        try:
            return await self.bucket.run(read)
        except ObjectNotFound as error:
            await self._compare_once()  # raises BucketUnavailable if the bucket itself is missing
            if path not in self._missing and await self._objects.state(path) == "stored":
                self._missing.add(path)
                _log.error(
                    "the content of a file is missing: there is no object %s in %s", path, self.bucket.url
                )
            raise ContentMissing from error

    # -- the identity of the bucket

    async def _check_for_ever(self) -> None:
        while not self._checked.is_set():
            try:
                await self._compare_once()
            except BucketUnavailable as error:
                await self._wait(error)
            except StoreError as error:
                _log.error("the bucket could not be checked, retrying: %s", error)
                await asyncio.sleep(RETRY_STORE)

    async def _compare_once(self) -> None:
        """Wait for the comparison in progress, or begin one; the errors are those of ``_compare``."""
        if self._check is None or self._check.done():
            self._check = asyncio.get_running_loop().create_task(self._compare())
            self._check.add_done_callback(_retrieved)
        await asyncio.shield(self._check)

    async def _compare(self) -> None:
        """Compare the id in the bucket with the id in the database.

        If the bucket has no id and the database has no objects in a bucket, write the id of the database to
        the bucket.

        Raises:
            BucketUnavailable: the bucket does not answer, or has another id.
            StoreError: the database does not answer.
        """
        expected = await self._table.secret(BUCKET_ID, secrets.token_hex(16))
        found = await bucket_mark.read(self.bucket)
        used = found != expected and bool(await self._objects.counts())
        if found is None and not used:
            await self.bucket.write(bucket_mark.MARK, expected.encode())
            found = expected
        if (problem := bucket_mark.problem(self.bucket.url, found, expected, used=used)) is not None:
            raise BucketUnavailable(problem)
        self._checked.set()
        self._answered()

    # -- uploads

    async def _search(self) -> None:
        await self._checked.wait()
        await self._until_done("files on the disk could not be listed", self._add_local)
        await self._until_done("trained versions could not be listed", self._restore_all)

    async def _until_done(self, failure: str, action: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await action()
            except (StoreError, OSError) as error:
                _log.error("%s, retrying: %s", failure, error)
                await asyncio.sleep(RETRY_STORE)
            else:
                return

    async def _restore_all(self) -> None:
        """Restore all versions; one that fails is tried again after the others."""
        pending = await self._objects.versions()
        reported: set[str] = set()
        while pending:
            failed: dict[str, ApplianceError | OSError] = {}
            for version in pending:
                try:
                    await self._restore(version)
                except ContentMissing as error:
                    _log.error("version %s is not copied from the bucket: %s", version, error)
                except (BucketUnavailable, StoreError, OSError) as error:
                    failed[version] = error
            for version in failed.keys() - reported:
                text = "version %s could not be copied from the bucket, retrying: %s"
                _log.error(text, version, failed[version])
            reported |= failed.keys()
            if pending := list(failed):
                await asyncio.sleep(_LONGEST)

    async def _add_local(self) -> None:
        ids = await self._objects.files()
        outputs = {} if self._cipher is None else await self._table.output_paths()
        for kind in ("uploads", "outputs"):
            for path in await asyncio.to_thread(self._files_below, kind):
                if path in ids:
                    self.add(path, ids[path], encrypt_first=path in outputs)

    def _files_below(self, folder: str) -> list[str]:
        found = (self._folder / folder).rglob("*")
        return sorted(str(file.relative_to(self._folder)) for file in found if file.is_file())

    async def _restore(self, version: str) -> None:
        """Upload a trained version; or copy it from the bucket, if its folder is not on the disk."""
        folder = self._folder / VERSIONS / version
        if folder.is_dir():
            await self.add_version(version)
            return
        states = await self._objects.of_version(version)
        if not states:
            return
        if incomplete := sorted(path for path, state in states.items() if state != "stored"):
            text = "version %s is not copied from the bucket: %d of its %d files are not complete there: %s"
            _log.error(text, version, len(incomplete), len(states), ", ".join(incomplete[:3]))
            return
        unfinished = folder.with_name(f".restored-{version}")
        await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        try:
            for path in states:
                await self.download(path, unfinished / path.removeprefix(f"{VERSIONS}{version}/"))
            if await self._objects.of_version(version) != states:
                return  # the version was deleted meanwhile
            unfinished.rename(folder)
        finally:  # remove the incomplete copy after an error
            await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        _log.info("copied version %s from %s", version, self.bucket.url)

    async def _upload_for_ever(self) -> None:
        await self._checked.wait()
        while True:
            upload = await self._queue.get()
            try:
                done = await self._move(upload)
            except BucketUnavailable as error:
                await self._wait(error)
                done = False
            except (StoreError, OSError) as error:
                _log.error("the file %s is not in the bucket yet, retrying: %s", upload.path, error)
                await asyncio.sleep(RETRY_STORE)
                done = False
            if done and (again := self._again.pop(upload.path, None)) is not None:
                self._queue.put_nowait(again)
            elif done:
                self._known.discard(upload.path)
            else:
                asyncio.get_running_loop().call_later(_SHORTEST, self._queue.put_nowait, upload)

    async def _move(self, upload: _Upload) -> bool:
        """Move a file to the bucket; return False if this must be repeated later.

        Raises:
            BucketUnavailable: the object could not be written.
            StoreError, OSError: the state could not be stored, or the file could not be read.
        """
        file = self._folder / upload.path
        self._active.add(upload.path)
        try:
            if upload.encrypt_first and self._cipher is not None:
                if not await asyncio.to_thread(self._cipher.is_encrypted, file):
                    return False
            elif not await asyncio.to_thread(file.is_file):
                return True
            state = await self._objects.begin(upload.path, upload.id)
            if state is None:
                return True  # deleted meanwhile
            if state == "deleting":
                self.wake()
                return False
            if state == "uploading" or not upload.keep:
                # A restored database may say `stored` of an object that was deleted after the backup.
                await self.bucket.upload(upload.path, file)
                self._answered()
                if state == "uploading" and not await self._objects.complete(upload.path):
                    self.wake()  # the row was deleted during the upload
                    return True
            if not upload.keep:
                await asyncio.to_thread(file.unlink, missing_ok=True)
        except FileNotFoundError:  # deleted meanwhile
            return True
        finally:
            self._active.discard(upload.path)
        return True

    # -- deletions

    async def _delete_for_ever(self) -> None:
        await self._checked.wait()
        while True:
            self._deleted.clear()
            try:
                await self._delete_all()
            except BucketUnavailable as error:
                await self._wait(error)
                continue
            except StoreError as error:
                _log.error("objects could not be deleted from the bucket, retrying: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL):
                    await self._deleted.wait()

    async def _delete_all(self) -> None:
        """Delete all objects that are to be deleted, and go on after each that cannot be deleted.

        Raises:
            BucketUnavailable, StoreError: the first failure.
        """
        last = ""
        failure: BaseException | None = None
        while found := await self._objects.to_delete(last, _BATCH):
            last = found[-1]
            paths = [path for path in found if path not in self._active]
            for start in range(0, len(paths), _DELETIONS_AT_ONCE):
                group = paths[start : start + _DELETIONS_AT_ONCE]
                results = await asyncio.gather(*map(self._delete, group), return_exceptions=True)
                errors = [each for each in results if each is not None]
                failure = next(iter(errors), None) if failure is None else failure
                if len(errors) == len(group) and isinstance(errors[0], BucketUnavailable):
                    await self._wait(errors[0])  # the bucket may be away
        if failure is not None:
            raise failure

    async def _delete(self, path: str) -> None:
        await self.bucket.delete(path)
        await self._objects.forget(path)
        self._answered()

    # -- a bucket that does not answer

    async def _wait(self, error: ApplianceError) -> None:
        now = time.monotonic()
        if self._reported is None or now - self._reported > _SILENCE:
            self._reported = now
            _log.error("files cannot be moved to the bucket, or deleted there, retrying: %s", error)
        self._pause = min(self._pause * 2, _LONGEST)
        await asyncio.sleep(self._pause)

    def _answered(self) -> None:
        self._pause = _SHORTEST
        if self._reported is not None:
            self._reported = None
            _log.info("the bucket %s answers again", self.bucket.url)


def _retrieved(task: asyncio.Task[None]) -> None:
    """Retrieve the error of a task, so that asyncio does not log it if all callers were cancelled."""
    if not task.cancelled():
        task.exception()


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        text = "files are not moved to the bucket until the next start, because of a bug"
        _log.error(text, exc_info=error)
