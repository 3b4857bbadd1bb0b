"""Uploads and output files: bytes on the disk or in a bucket, with a row in the store.

The bytes are written before the row, and the row is deleted before the bytes. So a crash can leave bytes
without a row, which the next start deletes, but never a row without bytes. Output files are encrypted after
their rows are queued; readers see the same content before and after. With ``files.s3`` files are moved to a
bucket after their rows are committed (``bucket_transfer``).

The URL of an output file is published at once, so requests for it are answered from memory until its row is
committed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from appliance.config import FilesConfig
from appliance.domain.errors import (
    BucketUnavailable,
    ContentMissing,
    FileQuotaExceeded,
    OutputRemoved,
    PredictionFailed,
    StoreError,
    UnstorableValue,
)
from appliance.domain.file import File, OutputFile
from appliance.domain.prediction import Prediction, new_id
from appliance.gateway.files.open_content import OpenContent, open_local
from appliance.gateway.files.output_check import EarlierOutputs, problem_of
from appliance.store import RETRY_STORE
from appliance.store.files import FileTable

if TYPE_CHECKING:
    from appliance.gateway.files.bucket_transfer import BucketTransfer
    from appliance.gateway.files.encrypted_file import FileCipher
    from appliance.gateway.files.output_encryption import OutputEncryption

_log = logging.getLogger(__name__)

WRITE: Final = 1024 * 1024  # bytes hashed and written at a time, in a thread
_EXPIRY_INTERVAL: Final = 30.0  # seconds between deletions of expired uploads
_BATCH: Final = 200
_IN_BUCKET: Final = {"uploading", "stored"}  # states of objects that may exist
_SECRET: Final = "files-signing-secret"  # noqa: S105 - its name in the store, not the secret


def signature(secret: str, owner: str, id: str, expiry: int) -> str:
    """Return the signature of a download URL that is valid until ``expiry`` (Unix seconds).

    The signature is the base64 of HMAC-SHA256 over owner, id and expiry, separated by spaces, as on
    Replicate.
    """
    text = f"{owner} {id} {expiry}".encode()
    return base64.b64encode(hmac.new(secret.encode(), text, hashlib.sha256).digest()).decode()


async def signing_secret(table: FileTable) -> str:
    """Return the secret key for ``signature``; the first call creates the key."""
    return await table.secret(_SECRET, secrets.token_urlsafe(32))


class Incoming:
    """An unfinished upload; ``FileStore.incoming`` creates it."""

    def __init__(self, path: Path, expected: int, cipher: FileCipher | None = None) -> None:
        """Create the file ``path``, which must not exist. ``expected`` is its size in bytes.

        With ``cipher`` the file is encrypted.
        """
        self.path = path
        self.expected = expected
        self.done = False  # whether the upload is stored or discarded
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._buffer = bytearray()
        self._file: BinaryIO = path.open("xb")
        self._encrypted = None if cipher is None else cipher.writer(self._file)

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        self._buffer += data
        if len(self._buffer) >= WRITE:
            await asyncio.to_thread(self._flush)

    async def close(self) -> tuple[str, str]:
        """Finish the file; return its SHA-256 and its MD5 as hex digits."""
        await asyncio.to_thread(self._finish)
        return self._sha256.hexdigest(), self._md5.hexdigest()

    def _finish(self) -> None:
        self._flush()
        if self._encrypted is not None:
            self._encrypted.close()
        self._file.flush()
        os.fsync(self._file.fileno())  # the row survives a power cut, so the bytes must too
        self._file.close()
        self.path.chmod(0o400)  # input files of predictions are hard links to it

    def discard(self) -> None:
        self.done = True
        with contextlib.suppress(OSError):  # closing flushes a buffer, which fails on a full disk
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        self._sha256.update(self._buffer)
        self._md5.update(self._buffer)
        (self._encrypted or self._file).write(self._buffer)
        self._buffer.clear()


class FileStore:
    """Stores uploads and output files; used on the gateway's event loop only."""

    def __init__(
        self,
        table: FileTable,
        folder: Path,
        config: FilesConfig,
        cipher: FileCipher | None = None,
        transfer: BucketTransfer | None = None,
    ) -> None:
        """Keep all bytes in ``folder``; nothing is created before ``start``.

        ``cipher`` encrypts uploads and output files, except the weights that trainings output. ``transfer``
        moves files to a bucket.
        """
        self.config = config
        self.cipher = cipher
        self.folder = folder
        self.table = table
        self._secret = ""
        self._task: asyncio.Task[None] | None = None
        self._unsaved: dict[str, File] = {}  # outputs by id, until their rows are committed
        self._arriving: list[Incoming] = []
        self._encryption: OutputEncryption | None = None
        self._transfer = transfer
        self._earlier_outputs = EarlierOutputs()
        self._logged_missing: set[str] = set()  # paths of missing files that the log has named

    async def start(self) -> None:
        """Create the folders, and delete bytes that a crash left.

        From then on, expired uploads are deleted, and output files are encrypted.
        """
        for name in ("uploads", "outputs", "versions"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._secret = await signing_secret(self.table)
        known, unfinished = await self.table.paths(), await self.table.unfinished_predictions()
        await asyncio.to_thread(self._delete_unknown, known, unfinished)
        await self._earlier_outputs.check(self.table, self.folder, self.cipher)
        if self.cipher is not None:
            from appliance.gateway.files.output_encryption import OutputEncryption  # imports a large library

            self._encryption = OutputEncryption(self.cipher)
            outputs = await self.table.output_paths()
            self._encryption.start({self.folder / path: id for path, id in outputs.items()})
        if self._transfer is not None:
            self._transfer.start()
        elif count := sum((await self.table.objects.counts()).values()):
            _log.error(
                "%d files are in a bucket and cannot be read or deleted: set files.s3 in models.yaml again",
                count,
            )
        self._task = asyncio.get_running_loop().create_task(self._expire_for_ever())

    async def close(self) -> None:
        """Stop deleting expired uploads, retrying failed writes of rows, and encrypting output files."""
        self._unsaved.clear()
        if self._encryption is not None:
            await self._encryption.close()
        if self._transfer is not None:
            await self._transfer.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def inline(self) -> int:
        """Largest output in bytes that becomes a ``data:`` URL; -1 if outputs never do."""
        return self.config.max_data if self.config.outputs == "data" else -1

    def path(self, file: File) -> Path:
        return self.folder / file.path

    # -- uploads

    async def incoming(self, expected: int | None) -> Incoming:
        """Start an upload of about ``expected`` bytes, or of unknown size (None).

        Raises:
            FileQuotaExceeded: all uploads together, including unfinished ones, would exceed ``files.quota``.
        """
        most = self.config.max_upload
        expected = most if expected is None else min(expected, most)
        used = await self.table.uploaded_bytes()
        self._arriving = [each for each in self._arriving if not each.done]
        used += sum(each.expected for each in self._arriving)
        if used + expected > self.config.quota:
            raise FileQuotaExceeded(
                f"Uploads use {used:,} of {self.config.quota:,} bytes (files.quota in models.yaml): "
                "delete some, or wait until they expire"
            )
        incoming = Incoming(self.folder / "uploads" / new_id(), expected, self.cipher)
        self._arriving.append(incoming)
        return incoming

    async def keep(
        self, incoming: Incoming, *, owner: str, name: str, content_type: str, metadata: dict[str, Any]
    ) -> File:
        """Store a complete upload and return its record."""
        sha256, md5 = await incoming.close()
        now = round(time.time(), 6)
        file = File(
            id=incoming.path.name,
            owner=owner,
            name=name,
            content_type=content_type,
            size=incoming.size,
            sha256=sha256,
            md5=md5,
            metadata=metadata,
            created_at=now,
            expires_at=None if self.config.keep is None else now + self.config.keep,
            path=f"uploads/{incoming.path.name}",
        )
        await self.table.add(file)
        incoming.done = True
        if self._transfer is not None:
            self._transfer.add(file.path, file.id)
        return file

    async def upload(self, id: str, owner: str | None) -> File | None:
        """Return an upload that has not expired and belongs to ``owner`` (None: any owner), else None."""
        file = await self.table.get(id)
        if file is None or file.prediction is not None or (owner is not None and file.owner != owner):
            return None
        return None if file.expires_at is not None and file.expires_at <= time.time() else file

    async def open(self, path: Path) -> OpenContent:
        """Open the content of a stored file, decrypted, on the disk or in the bucket.

        Raises:
            OutputRemoved: the file was deleted.
            ContentMissing: the content is neither on the disk nor in a bucket.
            BucketUnavailable: the content is in a bucket that does not answer.
            OSError: the file cannot be read.
        """
        with contextlib.suppress(FileNotFoundError):
            return OpenContent(await asyncio.to_thread(open_local, path, self.cipher), None)
        # A file is deleted on the disk only after the table says that the object is stored. After a takeover,
        # the object may exist although the former head did not record it.
        relative = str(path.relative_to(self.folder))
        state = await self.table.objects.state(relative)
        if state not in _IN_BUCKET or (state == "uploading" and self._transfer is None):
            raise await self._missing(relative)
        if self._transfer is None:
            raise BucketUnavailable(f"{relative} is in a bucket: set files.s3 in models.yaml again")
        try:
            reader = await self._transfer.open(relative)
        except (BucketUnavailable, ContentMissing) as error:
            if await self.table.objects.state(relative) not in _IN_BUCKET:
                raise OutputRemoved from error
            if isinstance(error, BucketUnavailable):
                _log.error("the file %s cannot be read: %s", relative, error)
            elif state == "uploading":
                raise await self._missing(relative) from error
            raise
        return OpenContent(reader, self._transfer.bucket)

    async def _missing(self, path: str) -> OutputRemoved | ContentMissing:
        """Return the error for a file that is neither on the disk nor in a bucket; log it once."""
        if not await self.table.exists(path):
            return OutputRemoved()
        if path not in self._logged_missing:
            self._logged_missing.add(path)
            _log.error(
                "the content of a file is missing: %s is neither in %s nor in a bucket: the former "
                "head may have the file on its disk: make that machine the head again",
                *(path, self.folder),
            )
        return ContentMissing()

    @property
    def local_only(self) -> bool:
        """Whether stored files are always on the disk, without encryption, so that they can be linked."""
        return self.cipher is None and self._transfer is None

    async def content(self, path: Path) -> bytes:
        """Return the content of a stored file, decrypted.

        Raises:
            OutputRemoved: the file was deleted.
            ContentMissing: the content is neither on the disk nor in a bucket.
            BucketUnavailable: the content is in a bucket that does not answer.
            OSError: the file cannot be read.
            StoreError: the encrypted file is damaged.
        """
        with contextlib.closing(await self.open(path)) as content:
            return await content.read()

    async def copy_content(self, path: Path, target: Path) -> None:
        """Write the content of a stored file to ``target``, decrypted; it is never whole in memory.

        Raises:
            OutputRemoved: the file was deleted.
            ContentMissing: the content is neither on the disk nor in a bucket.
            BucketUnavailable: the content is in a bucket that does not answer.
            OSError: a file cannot be read or written.
            StoreError: the encrypted file is damaged.
        """
        with contextlib.closing(await self.open(path)) as content:
            await asyncio.to_thread(target.unlink, missing_ok=True)
            await content.copy_to(target)

    async def keep_version(self, version: str) -> None:
        """Copy the files of a trained version to the bucket, if there is one; its row must be committed."""
        if self._transfer is not None:
            await self._transfer.add_version(version)

    async def remove(self, file: File) -> None:
        await self.table.remove(file.id)
        await asyncio.to_thread(self.path(file).unlink, missing_ok=True)
        self.delete_objects()

    def delete_objects(self) -> None:
        """Delete the objects of rows that were deleted soon, if there is a bucket."""
        if self._transfer is not None:
            self._transfer.wake()

    def sign(self, file: File, expiry: int) -> str:
        """Return the signature of a download URL that is valid until ``expiry`` (Unix seconds)."""
        return signature(self._secret, file.owner, file.id, expiry)

    def signed(self, id: str, owner: str, expiry: str, presented: str) -> bool:
        """Return whether ``presented`` is the signature of this download URL, and the URL has not expired."""
        if not (expiry.isascii() and expiry.isdecimal() and len(expiry) < 12 and int(expiry) > time.time()):
            return False
        expected = signature(self._secret, owner, id, int(expiry))
        return hmac.compare_digest(expected.encode(), presented.encode(errors="replace"))

    # -- outputs

    def outputs(self, id: str, attempt: int) -> str:
        """Return the folder for the output files of one attempt of a prediction."""
        return f"{self.folder}/outputs/{id}/{attempt}"

    def register(self, record: Prediction, values: Iterable[Any]) -> list[Any]:
        """Record the files in new output values of ``record``; return the values as they are stored.

        The rows of the files are queued before any write that refers to them.

        Raises:
            PredictionFailed: a file is missing or incomplete.
        """
        return [self._registered(record, value) for value in values]

    def _registered(self, record: Prediction, value: Any) -> Any:
        match value:
            case OutputFile():
                path, encryption = Path(value.path), self._encryption
                if record.destination is not None:  # weights, which are not encrypted
                    encryption = None
                if encryption is not None or (self._transfer is not None and record.destination is None):
                    path = self._rename_by_id(path, value.id)
                self._check_output(value, path)
                value.path = str(path.relative_to(self.folder))
                file = File(
                    id=value.id,
                    owner=record.owner,
                    name=value.name,
                    content_type=value.content_type,
                    size=value.size,
                    sha256=value.sha256,
                    md5=value.md5,
                    created_at=round(time.time(), 6),
                    prediction=record.id,
                    path=value.path,
                )
                self._unsaved[file.id] = file
                self._save(file, encrypt_first=encryption is not None)
                if encryption is not None:
                    encryption.add(record.id, path)
                return value
            case list():
                return [self._registered(record, each) for each in value]
            case dict():
                return {key: self._registered(record, each) for key, each in value.items()}
        return value

    def _check_output(self, file: OutputFile, path: Path) -> None:
        """Raise ``PredictionFailed`` if the content of an output file is missing or incomplete."""
        relative = str(path.relative_to(self.folder))
        if relative in self._earlier_outputs:  # it may be in the bucket
            problem = self._earlier_outputs.problem(relative)
        else:
            problem = problem_of(path, file.size, self.cipher)
        if problem is not None:
            raise PredictionFailed(f"the output file {file.name} {problem}")

    def problem_of_stored_output(self, record: Prediction) -> str | None:
        """Return the problem of a missing or incomplete file in the stored output of ``record``, or None."""
        return self._earlier_outputs.problem_in(record)

    def _rename_by_id(self, path: Path, id: str) -> Path:
        """Rename an output file to a hash of its id, and return the new path.

        With encryption, this hides the name, which may be the name of an input file. With a bucket, it
        prevents a later output with the same name from getting the same path.
        """
        renamed = path.with_name(hashlib.sha256(id.encode()).hexdigest()[:32])
        # After a restart of the gateway an output may be registered again. Then another file may be at its
        # first path.
        if not renamed.exists() and str(renamed.relative_to(self.folder)) not in self._earlier_outputs:
            with contextlib.suppress(FileNotFoundError):
                path.rename(renamed)
        return renamed

    def _save(self, file: File, *, encrypt_first: bool) -> None:
        """Store the row of an output file; ``encrypt_first`` says whether the file is to be encrypted."""
        if file.id in self._unsaved:
            self.table.add(file).add_done_callback(partial(self._saved, file, encrypt_first))

    def _saved(self, file: File, encrypt_first: bool, written: asyncio.Future[None]) -> None:
        error = None if written.cancelled() else written.exception()
        if isinstance(error, StoreError) and not isinstance(error, UnstorableValue):  # such as a full disk
            text = "file %s of prediction %s is not stored yet, retrying: %s"
            _log.error(text, file.name, file.prediction, error)
            again = partial(self._save, file, encrypt_first=encrypt_first)
            asyncio.get_running_loop().call_later(RETRY_STORE, again)
            return
        if error is not None:
            _log.error("file %s of prediction %s is lost: %s", file.name, file.prediction, error)
        elif self._transfer is not None and not written.cancelled():
            self._transfer.add(file.path, file.id, encrypt_first=encrypt_first)
        self._unsaved.pop(file.id, None)

    async def output(self, id: str) -> File | None:
        """Return the output file with this id, or None."""
        if (unsaved := self._unsaved.get(id)) is not None:
            return unsaved
        file = await self.table.get(id)
        return file if file is not None and file.prediction is not None else None

    async def remove_outputs(self, predictions: Iterable[str]) -> None:
        """Delete the output files of predictions whose rows the store has already deleted."""
        removed = set(predictions)
        self._unsaved = {id: file for id, file in self._unsaved.items() if file.prediction not in removed}
        if self._encryption is not None:
            await self._encryption.forget(removed)
        for id in removed:
            await asyncio.to_thread(shutil.rmtree, self.folder / "outputs" / id, ignore_errors=True)
        self.delete_objects()

    # -- deletion

    async def _expire_for_ever(self) -> None:
        while True:
            try:
                expired = await self.table.expired(time.time(), _BATCH)
                for file in expired:
                    await self.remove(file)
            except (StoreError, OSError) as error:
                _log.error("expired uploads could not be deleted, retrying: %s", error)
                expired = []
            if len(expired) < _BATCH:
                await asyncio.sleep(_EXPIRY_INTERVAL)

    def _delete_unknown(self, known: set[str], unfinished: set[str]) -> None:
        """Delete files on the disk that have no row, except outputs of unfinished predictions.

        A worker process may have made such outputs while no gateway ran. Call this before the gateway creates
        any file.
        """
        for upload in (self.folder / "uploads").iterdir():
            if f"uploads/{upload.name}" not in known:
                upload.unlink()
        kept = unfinished | {path.split("/")[1] for path in known if path.startswith("outputs/")}
        for folder in (self.folder / "outputs").iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.folder / "versions").glob(".*"):  # unfinished copies of weights
            shutil.rmtree(folder, ignore_errors=True)
