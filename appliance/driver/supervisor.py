"""Keeps a child process of the driver running."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from appliance.runners.child_environment import without_secrets

_log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 1.0  # seconds before the first restart; doubles with each further restart
LONGEST_PAUSE: Final = 30.0  # seconds; after a longer run the pause is FIRST_PAUSE again
_GRACE: Final = 5.0  # seconds between SIGTERM and SIGKILL


class Supervisor:
    """Runs one child process, and restarts the child whenever it ends.

    The standard input of the child is a pipe from the driver. When the driver dies, the pipe closes, and the
    child must exit.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        log: Path,
        variables: Mapping[str, str] | None = None,
        secrets: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """``command`` returns the command line and is called at each start. Output is appended to ``log``.

        The child's environment is the driver's environment without secrets, plus ``variables``. If
        ``secrets`` is given, the child gets its result as a line of JSON on its standard input.
        """
        self._name = name
        self._command = command
        self._log = log
        self._variables = variables or {}
        self._secrets = secrets
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._pause = FIRST_PAUSE
        self._lines: list[str] = []

    async def start(self) -> None:
        await self._spawn()
        self._watch = asyncio.get_running_loop().create_task(self._restart_when_ended())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})  # asyncio ends a process that is just being started
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _GRACE)
        except TimeoutError:
            process.kill()
            try:
                await asyncio.wait_for(process.wait(), _GRACE)
            except TimeoutError:  # the process waits for a device or a disk that does not answer
                text = "the %s process %d did not end within %g s after SIGKILL"
                _log.error(text, self._name, process.pid, _GRACE)

    def send_line(self, line: str) -> None:
        """Write a line to the standard input of the child, and of each child that replaces it."""
        self._lines.append(line)
        self._write(line)

    def _write(self, line: str) -> None:
        process = self._process
        if process is not None and process.returncode is None and process.stdin is not None:
            process.stdin.write(line.encode() + b"\n")

    async def _spawn(self) -> None:
        command = self._command()
        secrets = None if self._secrets is None else json.dumps(self._secrets())
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**without_secrets(), **self._variables},
                start_new_session=True,  # Ctrl-C in the terminal is only for the driver
            )
        if secrets is not None:
            self._write(secrets)
        for line in self._lines:
            self._write(line)

    async def _restart_when_ended(self) -> None:
        while self._process is not None:
            began = time.monotonic()
            code = await self._process.wait()
            if time.monotonic() - began > LONGEST_PAUSE:
                self._pause = FIRST_PAUSE
            _log.error(
                "the %s process ended with exit code %s and will be restarted: see %s",
                self._name,
                code,
                self._log,
            )
            while True:
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
                try:
                    await self._spawn()
                    break
                # For example no memory for a process, no disk space for its log, or a config that is damaged.
                except Exception as error:  # noqa: BLE001 - nobody else restarts the child
                    _log.error(
                        "the %s process could not be started: %s: next attempt in %.1f s",
                        self._name,
                        error,
                        self._pause,
                    )
