"""A machine that runs `appliance join`, for integration tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.support.appliance_process import PATIENCE, Appliance, wait_for


class JoinedNode:
    """One `appliance join` with its own data folder. Its processes have the variable APPLIANCE_HOME."""

    def __init__(
        self, home: Path, name: str, address: str, token: str, prefix: Sequence[str], *options: str
    ) -> None:
        """``address`` is that of the head, ``prefix`` a command that runs it on its machine."""
        self.home = home
        self.name = name
        self.output = home / "output.txt"
        self._command = [*prefix, str(Appliance.program), "join", address, "--name", name, *options]
        self._token = token
        self.process: subprocess.Popen[str] | None = None
        home.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start it, without waiting until it has joined."""
        environment = {**os.environ, "APPLIANCE_HOME": str(self.home), "APPLIANCE_CLUSTER_TOKEN": self._token}
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    @property
    def joined(self) -> int:
        """How often it has joined."""
        return self.output.read_text().count(f"node {self.name} has joined")

    def wait_until_joined(self, times: int = 1) -> None:
        process = self.process
        assert process is not None
        wait_for(lambda: process.poll() is not None or self.joined >= times, f"{self.name} to join")
        assert process.poll() is None, self.output.read_text()

    def stop(self) -> int:
        """Stop it by SIGTERM; return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill all its processes with SIGKILL, as a power failure does."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process is not None:
            self.process.wait(PATIENCE)

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Return its processes that have ``part`` in their command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                named = process.environ().get("APPLIANCE_HOME") == str(self.home)
                if named and process.status() != psutil.STATUS_ZOMBIE and part in " ".join(process.cmdline()):
                    found.append(process)
        return found
