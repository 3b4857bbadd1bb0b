"""Runs the commands of a build."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from appliance.domain.errors import WeightsError
from appliance.machine import landlock
from appliance.runners.child_environment import without_secrets
from appliance.runners.cog.search_paths import with_programs

_log = logging.getLogger(__name__)

#: Prefix of lines in the log of a build that name the next step; other lines are output of tools.
STEP: Final = "==> "
_TIMEOUT: Final = 1800.0  # seconds for one command
_TAIL: Final = 2000  # characters of the output of a command in an error message
_PIPE: Final = 65536  # bytes that a pipe holds
_INTERVAL: Final = 500  # milliseconds between checks whether a silent process has ended


class BuildProcess:
    """A running build: its folder, its log, and the keys of ``cog.yaml`` that it does not honour."""

    def __init__(
        self,
        model: str,
        folder: Path,
        say: Callable[[str], None],
        environment: dict[str, str],
        subject: str = "Cog project",
    ) -> None:
        """``say`` gets each line of the log; ``subject`` is what is built, for error messages.

        ``environment`` are additional variables for the commands: the key of the same name in ``cog.yaml``.
        """
        self.model = model
        self.folder = folder
        self.say = say
        self.notes: list[str] = []
        self._environment = environment
        self._subject = subject
        if not landlock.supported():
            _log.warning(
                "the kernel does not support Landlock (Linux 5.19 or later does): the build of model %s "
                "could read the environment and the memory of the other processes of this user",
                model,
            )

    def step(self, text: str) -> None:
        self.say(f"{STEP}{text}")

    def note(self, text: str) -> None:
        """Record a key of ``cog.yaml`` that is not honoured, for the log and for the version."""
        self.notes.append(text)
        self.say(f"not honoured: {text}")
        _log.warning("model %s: a part of cog.yaml is not honoured: %s", self.model, text)

    def error(self, reason: str) -> WeightsError:
        return WeightsError(f"model {self.model}: its {self._subject} cannot be built: {reason}")

    def variables(self) -> dict[str, str]:
        """Return the environment variables of processes of the build."""
        variables = {**without_secrets(), **self._environment}
        variables.pop("VIRTUAL_ENV", None)  # the project has its own environment
        return with_programs(variables, self.folder)

    def run(self, command: list[str], cwd: Path, what: str | None = None, *, restricted: bool = True) -> None:
        """Run a command, log each line that it prints, and kill child processes that remain.

        ``what`` is the name of the command in error messages. A ``restricted`` command cannot read the
        environment or the memory of other processes, if the kernel supports Landlock.

        Raises:
            WeightsError: the command failed or took too long; the message has the end of its output.
        """
        what = what or command[0]
        process = self._restricted(command, cwd) if restricted else _start(command, cwd, self.variables())
        output: deque[str] = deque(maxlen=100)
        deadline = time.monotonic() + _TIMEOUT
        with process:
            try:
                for line in _lines(process, deadline):
                    output.append(line)
                    self.say(line)
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                raise self.error(f"{what} ran longer than {_TIMEOUT:g} s") from error
            finally:  # also at Ctrl-C
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if code != 0:
            text = "\n".join(output).strip()[-_TAIL:]
            ended = f"{what} ended with code {code}"
            reason = text or ended if what == command[0] else f"{ended}: {text}"
            raise self.error(reason)

    def _restricted(self, command: list[str], cwd: Path) -> subprocess.Popen[bytes]:
        """Start a command in a Landlock domain."""
        variables = os.memfd_create("variables")
        try:
            with open(variables, "w", encoding="utf-8", closefd=False) as file:
                json.dump(self.variables(), file)
            os.lseek(variables, 0, os.SEEK_SET)
            line = [*landlock.launcher(variables), *command]
            return _start(line, cwd, without_secrets(), pass_fds=(variables,))
        finally:
            os.close(variables)


def _start(
    command: list[str], cwd: Path, variables: dict[str, str], pass_fds: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        pass_fds=pass_fds,
    )


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
    """Yield the lines that a process prints until it ends. Lines longer than a pipe are split.

    The end of the pipe is not awaited, because child processes may keep the pipe open.

    Raises:
        TimeoutError: ``deadline`` (of ``time.monotonic``) has passed.
    """
    assert process.stdout is not None, "the process was started with a pipe"
    os.set_blocking(process.stdout.fileno(), False)
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    rest, ended, chunk = b"", False, None
    while chunk != b"" and not ended:
        ended = process.poll() is not None
        chunk = os.read(process.stdout.fileno(), _PIPE) if poll.poll(0 if ended else _INTERVAL) else None
        *lines, rest = (rest + (chunk or b"")).split(b"\n")
        if len(rest) > _PIPE:
            lines, rest = [*lines, rest], b""
        yield from (line.decode(errors="replace").rstrip("\r") for line in lines)
        if time.monotonic() > deadline:
            raise TimeoutError
    if rest:
        yield rest.decode(errors="replace")
