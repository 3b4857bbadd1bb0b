"""Files: what callers upload and what predictions make, as bytes on the disk with a row in the store.

The bytes are there before the row is, and the row is gone before they are: after a crash there may be bytes
without a row, which the next start removes, but never a row without its bytes.

The address of an output leaves as soon as it is made, so it is answered from then on: from memory until its
row is committed.
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
from typing import Any, BinaryIO, Final

from appliance.config import FilesConfig
from appliance.domain.errors import FileQuotaExceeded, StoreError, UnstorableValue
from appliance.domain.file import File, OutputFile
from appliance.domain.prediction import Prediction, new_id
from appliance.store import RETRY_STORE
from appliance.store.files import FileTable

_log = logging.getLogger(__name__)

WRITE: Final = 1024 * 1024  # bytes that are hashed and written at a time, in a thread
_SWEEP: Final = 30.0  # seconds between looks for uploads whose time is over
_BATCH: Final = 200
_SECRET: Final = "files-signing-secret"  # noqa: S105 - its name in the store, not the secret


def signature(secret: str, owner: str, id: str, expiry: int) -> str:
    """What makes a download address valid until ``expiry`` (Unix seconds), replicate-api section 6.3."""
    text = f"{owner} {id} {expiry}".encode()
    return base64.b64encode(hmac.new(secret.encode(), text, hashlib.sha256).digest()).decode()


async def signing_secret(table: FileTable) -> str:
    """The key of ``signature``, made when it is first asked for."""
    return await table.secret(_SECRET, secrets.token_urlsafe(32))


class Incoming:
    """An upload on its way to the disk; made by ``FileStore.incoming``."""

    def __init__(self, path: Path, expected: int) -> None:
        """``path`` must not exist; the file stays there. ``expected`` is its size in bytes."""
        self.path = path
        self.expected = expected
        self.done = False  # whether the upload is stored or discarded
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._buffer = bytearray()
        self._file: BinaryIO = path.open("xb")

    async def write(self, data: bytes) -> None:
        """Take the next bytes."""
        self.size += len(data)
        self._buffer += data
        if len(self._buffer) >= WRITE:
            await asyncio.to_thread(self._flush)

    async def close(self) -> tuple[str, str]:
        """Everything is there; gives the SHA-256 and the MD5."""
        await asyncio.to_thread(self._finish)
        return self._sha256.hexdigest(), self._md5.hexdigest()

    def _finish(self) -> None:
        self._flush()
        self._file.flush()
        os.fsync(self._file.fileno())  # the row that follows survives a power cut, and so must they
        self._file.close()
        self.path.chmod(0o400)  # input files of predictions are links to it

    def discard(self) -> None:
        """It is not wanted after all."""
        self.done = True
        with contextlib.suppress(OSError):  # closing flushes a buffer, which fails on a full disk
            self._file.close()
        self.path.unlink(missing_ok=True)

    def _flush(self) -> None:
        self._sha256.update(self._buffer)
        self._md5.update(self._buffer)
        self._file.write(self._buffer)
        self._buffer.clear()


class FileStore:
    """Lives on the gateway's loop."""

    def __init__(self, table: FileTable, folder: Path, config: FilesConfig) -> None:
        """``folder`` is for all bytes; nothing is touched before ``start``."""
        self.config = config
        self.folder = folder
        self.table = table
        self._secret = ""
        self._task: asyncio.Task[None] | None = None
        self._unsaved: dict[str, File] = {}  # outputs by id, until their rows are committed
        self._arriving: list[Incoming] = []

    async def start(self) -> None:
        """Make the folders, remove what a crash has left, and begin to remove what is too old."""
        for name in ("uploads", "outputs", "versions"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._secret = await signing_secret(self.table)
        await asyncio.to_thread(self._sweep, await self.table.paths())
        self._task = asyncio.get_running_loop().create_task(self._expire_for_ever())

    async def close(self) -> None:
        """Stop removing, and stop trying to write what the store refuses."""
        self._unsaved.clear()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def inline(self) -> int:
        """Outputs of up to so many bytes are ``data:`` URLs; -1 if none is."""
        return self.config.max_data if self.config.outputs == "data" else -1

    def path(self, file: File) -> Path:
        """Where the bytes are."""
        return self.folder / file.path

    # -- uploads

    async def incoming(self, expected: int | None) -> Incoming:
        """Begin an upload of about ``expected`` bytes; None if the client does not give a size.

        Raises:
            NoRoom: all uploads together, including unfinished ones, would exceed ``files.quota``.
        """
        most = self.config.max_upload
        expected = most if expected is None else min(expected, most)
        taken = await self.table.uploaded_bytes()
        self._arriving = [one for one in self._arriving if not one.done]
        taken += sum(one.expected for one in self._arriving)
        if taken + expected > self.config.quota:
            raise FileQuotaExceeded(
                f"Uploads take {taken:,} of {self.config.quota:,} bytes (files.quota in models.yaml): "
                "delete some, or wait until they expire"
            )
        incoming = Incoming(self.folder / "uploads" / new_id(), expected)
        self._arriving.append(incoming)
        return incoming

    async def keep(
        self, incoming: Incoming, *, owner: str, name: str, content_type: str, metadata: dict[str, Any]
    ) -> File:
        """The upload is complete: from now on it has an id."""
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
        return file

    async def upload(self, id: str, owner: str | None = None) -> File | None:
        """An upload that is not too old, of this owner if one is named."""
        file = await self.table.get(id)
        if file is None or file.prediction is not None or (owner is not None and file.owner != owner):
            return None
        return None if file.expires_at is not None and file.expires_at <= time.time() else file

    async def remove(self, file: File) -> None:
        """Delete an upload."""
        await self.table.remove(file.id)
        await asyncio.to_thread(self.path(file).unlink, missing_ok=True)

    def sign(self, file: File, expiry: int) -> str:
        """The signature of a download address that is valid until ``expiry`` (Unix seconds)."""
        return signature(self._secret, file.owner, file.id, expiry)

    def signed(self, id: str, owner: str, expiry: str, given: str) -> bool:
        """Whether a download address is valid now."""
        if not (expiry.isascii() and expiry.isdecimal() and len(expiry) < 12 and int(expiry) > time.time()):
            return False
        return hmac.compare_digest(
            signature(self._secret, owner, id, int(expiry)).encode(), given.encode(errors="replace")
        )

    # -- outputs

    def outputs(self, id: str, attempt: int) -> str:
        """The folder for what one run of a prediction makes."""
        return str(self.folder / "outputs" / id / str(attempt))

    def register(self, record: Prediction, values: Iterable[Any]) -> list[Any]:
        """Know the files in new output of ``record`` from now on; gives the output as it is stored.

        The rows are queued before anything that refers to them.
        """
        return [self._registered(record, value) for value in values]

    def _registered(self, record: Prediction, value: Any) -> Any:
        match value:
            case OutputFile():
                value.path = str(Path(value.path).relative_to(self.folder))
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
                self._save(file)
                return value
            case list():
                return [self._registered(record, part) for part in value]
            case dict():
                return {key: self._registered(record, part) for key, part in value.items()}
        return value

    def _save(self, file: File) -> None:
        if file.id in self._unsaved:
            self.table.add(file).add_done_callback(partial(self._saved, file))

    def _saved(self, file: File, written: asyncio.Future[None]) -> None:
        error = None if written.cancelled() else written.exception()
        if isinstance(error, StoreError) and not isinstance(error, UnstorableValue):  # a full disk, say
            _log.error("file %s of prediction %s is not stored yet: %s", file.name, file.prediction, error)
            asyncio.get_running_loop().call_later(RETRY_STORE, self._save, file)
            return
        if error is not None:
            _log.error("file %s of prediction %s is lost: %s", file.name, file.prediction, error)
        self._unsaved.pop(file.id, None)

    async def output(self, id: str) -> File | None:
        """A file that a prediction made."""
        if (unsaved := self._unsaved.get(id)) is not None:
            return unsaved
        file = await self.table.get(id)
        return file if file is not None and file.prediction is not None else None

    async def remove_outputs(self, predictions: Iterable[str]) -> None:
        """Remove the bytes of all files that these predictions made; the store has forgotten them."""
        gone = set(predictions)
        self._unsaved = {id: file for id, file in self._unsaved.items() if file.prediction not in gone}
        folders = [self.folder / "outputs" / id for id in gone]
        for folder in folders:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    # -- removing

    async def _expire_for_ever(self) -> None:
        while True:
            try:
                expired = await self.table.expired(time.time(), _BATCH)
                for file in expired:
                    await self.remove(file)
            except (StoreError, OSError) as error:
                _log.error("old uploads could not be removed, it is tried again: %s", error)
                expired = []
            if len(expired) < _BATCH:
                await asyncio.sleep(_SWEEP)

    def _sweep(self, known: set[str]) -> None:
        """Remove bytes that no row knows; runs before anything else makes files."""
        for upload in (self.folder / "uploads").iterdir():
            if f"uploads/{upload.name}" not in known:
                upload.unlink()
        made = {path.split("/")[1] for path in known if path.startswith("outputs/")}
        for folder in (self.folder / "outputs").iterdir():
            if folder.name not in made:
                shutil.rmtree(folder, ignore_errors=True)
