"""A child process of the driver that is started again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from appliance.runners.child_environment import without_secrets

_log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 1.0  # seconds between the end of a process and the next
LONGEST_PAUSE: Final = 30.0  # for one that ends again and again
_GRACE: Final = 5.0  # seconds that a process gets to end by itself


class Supervisor:
    """One such process. Its standard input is a pipe of ours, which ends when the driver dies."""

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        log: Path,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing runs before ``start``; ``command`` is called for each start of the process.

        The output of the process is appended to ``log``. Its environment is this process's without secrets,
        plus ``variables``.
        """
        self._name = name
        self._command = command
        self._log = log
        self._variables = variables or {}
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._pause = FIRST_PAUSE

    async def start(self) -> None:
        """Start it and watch it; it makes itself ready while everything else starts."""
        await self._spawn()
        self._watch = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """End it, and start it no more."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})  # it may be about to start one: asyncio ends that
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _GRACE)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _spawn(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**without_secrets(), **self._variables},
                start_new_session=True,  # Ctrl-C in the terminal is for the driver alone
            )

    async def _keep(self) -> None:
        while self._process is not None:
            began = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - began > LONGEST_PAUSE:
                self._pause = FIRST_PAUSE
            _log.error("the %s ended with %s; it is started again; see %s", self._name, code, self._log)
            while True:
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                try:
                    await self._spawn()
                    break
                except OSError as error:  # no memory for a process, no space for its log
                    _log.error("the %s could not be started, trying again: %s", self._name, error)
