"""Encryption of output files in the background, because worker processes write them without encryption."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from appliance.gateway.files.encrypted_file import FileCipher
from appliance.store import RETRY_STORE

_log = logging.getLogger(__name__)


class OutputEncryption:
    """Encrypts one output file after the other; used on the gateway's event loop only."""

    def __init__(self, cipher: FileCipher) -> None:
        self._cipher = cipher
        self._waiting: dict[Path, str] = {}  # ids of predictions, by files that are not encrypted yet
        self._current: tuple[str, asyncio.Future[None]] | None = None  # prediction of the file in progress
        self._searching: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, stored: Mapping[Path, str]) -> None:
        """Encrypt those stored files that are not encrypted; ``stored`` has the ids of their predictions.

        An earlier run may have ended before it encrypted them.
        """
        self._searching = asyncio.get_running_loop().create_task(self._search(stored))

    def add(self, prediction: str, file: Path) -> None:
        """Encrypt an output file soon. If this fails, for example on a full disk, it is repeated."""
        self._waiting.setdefault(file, prediction)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def forget(self, predictions: Collection[str]) -> None:
        """Stop encrypting files of ``predictions``, and wait for a file that is being encrypted.

        Afterwards the files can be deleted: no encrypted copy of one appears later.
        """
        if self._searching is not None:
            await asyncio.wait({self._searching})
        self._waiting = {file: id for file, id in self._waiting.items() if id not in predictions}
        if self._current is not None and self._current[0] in predictions:
            await asyncio.wait({self._current[1]})

    async def close(self) -> None:
        """Finish the file in progress. The next start encrypts the others."""
        self._waiting.clear()
        if self._current is not None:
            await asyncio.wait({self._current[1]})
        for task in (self._searching, self._task):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._waiting.clear()

    async def _search(self, stored: Mapping[Path, str]) -> None:
        for file in await asyncio.to_thread(self._unencrypted, stored):
            self.add(stored[file], file)

    def _unencrypted(self, files: Collection[Path]) -> list[Path]:
        found = []
        for file in files:
            try:
                if not self._cipher.is_encrypted(file):
                    found.append(file)
            except FileNotFoundError:  # its prediction was deleted meanwhile
                continue
            except OSError as error:
                _log.error("the output file %s cannot be read: %s", file, error)
        return found

    async def _run(self) -> None:
        while self._waiting:
            failed = False
            for file, prediction in list(self._waiting.items()):
                if file in self._waiting and not await self._encrypt(file, prediction):
                    failed = True
            if failed:
                await asyncio.sleep(RETRY_STORE)

    async def _encrypt(self, file: Path, prediction: str) -> bool:
        """Encrypt a file; return False if this failed and must be repeated."""
        encrypting = asyncio.ensure_future(asyncio.to_thread(self._cipher.encrypt, file))
        self._current = prediction, encrypting
        try:
            await encrypting
        except FileNotFoundError:  # its prediction was deleted meanwhile
            pass
        except OSError as error:
            text = "an output file of prediction %s is not encrypted yet, retrying: %s"
            _log.error(text, prediction, error)
            return False
        finally:
            self._current = None
        self._waiting.pop(file, None)
        return True
