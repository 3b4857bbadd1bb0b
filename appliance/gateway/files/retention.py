"""Retention: what predictions were given and gave is removed after a while; the records themselves stay."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final

from appliance.domain.errors import StoreError
from appliance.gateway.files.file_store import FileStore
from appliance.store import Store

_log = logging.getLogger(__name__)

BATCH: Final = 200  # predictions in one transaction, so that others need not wait for long
_SHORTEST, _LONGEST = 1.0, 60.0  # seconds between looks
_OFTEN: Final = 5.0  # the same where a disk may fill


class Retention:
    """Removes data that is old enough; lives on the gateway's loop."""

    def __init__(
        self, store: Store, files: FileStore, keep: float | None, outputs: int | None = None
    ) -> None:
        """``keep`` is for how many seconds after their end predictions keep their data; None is for ever.

        ``outputs`` is what the files of all of them may take together, in bytes; None is no limit.
        """
        self._store = store
        self._files = files
        self._keep = keep
        self._outputs = outputs
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def change(self, keep: float | None, outputs: int | None) -> None:
        """Go by these from now on; see the constructor."""
        self._keep, self._outputs = keep, outputs
        self._changed.set()

    async def close(self) -> None:
        """Stop; what is begun is finished."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                removed = await self._remove()
                await self._files.remove_outputs(removed)
            except StoreError as error:
                _log.error("old data could not be removed, it is tried again: %s", error)
                removed = []
            if removed:
                _log.info("removed the data of %d predictions", len(removed))
            if len(removed) < BATCH:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._changed.wait()

    def _pause(self) -> float | None:
        """Seconds until the next look; None: nothing is ever to be removed."""
        if self._keep is None and self._outputs is None:
            return None
        pause = _LONGEST if self._keep is None else min(max(self._keep / 10, _SHORTEST), _LONGEST)
        return pause if self._outputs is None else min(pause, _OFTEN)

    async def _remove(self) -> list[str]:
        removed = []
        if self._keep is not None:
            removed += await self._store.remove_data(time.time() - self._keep, BATCH)
        if self._outputs is not None:
            removed += await self._store.remove_files_over(self._outputs, BATCH)
        return removed
