"""A bucket in the memory of this process, which can stop to answer."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.store import MemoryStore

from appliance.config import S3Config
from appliance.domain.errors import BucketUnavailable
from appliance.gateway.files.bucket import Bucket, BucketFile
from appliance.gateway.files.bucket_mark import MARK


class MemoryBucket(Bucket):
    """The client library's own store in memory, with switches for faults."""

    def __init__(self, memory: MemoryStore | None = None) -> None:
        """Create an empty bucket, or open the one of another ``MemoryBucket`` again."""
        self.memory = memory or MemoryStore()
        self.away = False  # whether each call fails
        self.refused: set[str] = set()  # paths of objects that cannot be deleted or read
        self.held: asyncio.Event | None = None  # uploads wait for it before they end
        self.uploading: list[str] = []  # paths of uploads that began
        super().__init__(S3Config(url="s3://bucket/prefix"))

    def _store(self, config: S3Config, timeout: timedelta, *, retries: int) -> Any:
        return self.memory

    def objects(self) -> dict[str, bytes]:
        """Return the content of all objects by path, without the id of the appliance."""
        paths = [each["path"] for batch in obstore.list(self.memory) for each in batch]
        found = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # it was deleted after it had been listed
                found[path] = bytes(obstore.get(self.memory, path).bytes())
        found.pop(MARK, None)
        return found

    def lose(self, path: str) -> None:
        """Delete an object, as another program would."""
        obstore.delete(self.memory, path)

    async def write(self, path: str, content: bytes) -> None:
        self._answer()
        await super().write(path, content)

    async def upload(self, path: str, file: Path) -> None:
        self.uploading.append(path)
        self._answer()
        await super().upload(path, file)
        if self.held is not None:
            await self.held.wait()

    async def delete(self, path: str) -> None:
        self._answer()
        self._refuse(path)
        await super().delete(path)

    def open(self, path: str) -> BucketFile:
        self._answer()
        self._refuse(path)
        return super().open(path)

    def read(self, path: str, start: int, end: int) -> bytes:
        self._answer()
        return super().read(path, start, end)

    def _answer(self) -> None:
        if self.away:
            raise BucketUnavailable("s3://bucket/prefix: connection refused")

    def _refuse(self, path: str) -> None:
        if path in self.refused:
            raise BucketUnavailable("s3://bucket/prefix: access denied")
