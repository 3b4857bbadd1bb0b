"""An appliance that runs as `appliance serve`, for integration and end-to-end tests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import psutil

from appliance.domain.local_url import local_url
from appliance.machine.processes import is_running

ROOT = Path(__file__).parent.parent.parent
TOKEN = "test token with spaces"
#: Seconds after which a test gives up waiting. No test asserts how fast anything is: machines differ.
PATIENCE = 240.0
WEIGHTS = Path(os.environ.get("APPLIANCE_TEST_WEIGHTS", "/var/tmp/appliance-test-weights"))


def free_port() -> int:
    """Return a free port outside of the ranges from which the system, Ray and vLLM choose ports."""
    while True:
        port = 20_100 + secrets.randbelow(12_668)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def has_ipv6() -> bool:
    """Return whether this machine has the IPv6 loopback address; many containers have none."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@functools.cache
def certificates() -> ssl.SSLContext:
    """Return the certificates that httpx trusts. Without this, each client reads them, which takes 20 ms."""
    return httpx.create_ssl_context(trust_env=False)


def http_client(url: str = "", **more: Any) -> httpx.Client:
    """Return an HTTP client of the server at ``url``, with a timeout of ``PATIENCE`` and without proxies."""
    options: dict[str, Any] = {"timeout": PATIENCE, "verify": certificates(), **more}
    return httpx.Client(base_url=url, trust_env=False, **options)


class Appliance:
    """One `appliance serve` with its own home, config and port."""

    prefix: tuple[str, ...] = ()  # a command that runs it, such as ("prlimit", "--nofile=256")
    program = Path(sys.executable).parent / "appliance"
    folder: Path | None = None  # in which it is started

    def __init__(
        self,
        home: Path,
        config: Path | None,
        *,
        port: int | None = None,
        ui: bool = False,
        host: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self._config = config
        self.port = port or free_port()
        self.host = host
        self.url = local_url(host or "127.0.0.1", self.port, tls=False)
        self.ui = ui
        self.variables = variables or {}
        self.process: subprocess.Popen[str] | None = None
        self.output = home / "output.txt"
        home.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> tuple[str, int]:
        """The host and port of ``url``."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0

    @property
    def config(self) -> Path:
        """The config file that was given, or else the file that the first start writes into ``folder``."""
        return self._config or (self.folder or Path()) / "models.yaml"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a user of this appliance would export."""
        return {
            **os.environ,
            **self.variables,
            "APPLIANCE_HOME": str(self.home),
            "APPLIANCE_TOKEN": TOKEN,
            "APPLIANCE_URL": self.url,
            "REPLICATE_API_TOKEN": TOKEN,
            "REPLICATE_BASE_URL": self.url,
        }

    def start(self, seconds: float = PATIENCE) -> None:
        """Start the appliance and wait until it answers."""
        config = () if self._config is None else ("--config", str(self._config))
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                [
                    *self.prefix,
                    *(str(self.program), "serve", *config, "--port", str(self.port)),
                    *(() if self.host is None else ("--host", self.host)),
                    "--ui" if self.ui else "--no-ui",
                ],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        process = self.process
        wait_for(lambda: process.poll() is not None or self.answers(), "the appliance to answer", seconds)
        assert process.poll() is None, self.output.read_text()

    def answers(self) -> bool:
        """Return whether the health route answers with 200."""
        try:
            return fetch(f"{self.url}/healthz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self, seconds: float = PATIENCE) -> int:
        """Stop the appliance by SIGTERM, as systemd does; return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """Start the appliance; stop it at the end of the block. No process may be left then."""
        try:
            self.start()
        except BaseException:
            self.kill()  # else it would slow down all later tests
            raise
        yield self
        self.stop()
        assert self.processes() == []

    def kill(self) -> None:
        """Kill all processes of the appliance with SIGKILL."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with the one before
                process.kill()
        assert self.process is not None
        self.process.wait(PATIENCE)

    def processes(self) -> list[psutil.Process]:
        """Return the processes whose environment names the home of this appliance."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get("APPLIANCE_HOME") == str(self.home):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return [process for process in found if is_running(process.pid)]

    def named(self, part: str) -> list[psutil.Process]:
        """Return the processes with ``part`` in their command line."""
        found = []
        for process in self.processes():
            try:
                if part in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def gateway(self) -> psutil.Process:
        """Return the process of the gateway."""
        (process,) = self.named("ServeReplica:gateway")
        return process

    def kill_gateway(self) -> None:
        """Kill the gateway, and wait until it has ended, so that no later request reaches it."""
        process = self.gateway()
        process.kill()
        process.wait(PATIENCE)

    def worker_pids(self) -> list[int]:
        """Return the process ids of the worker processes."""
        return [int(mark.name) for mark in (self.home / "run" / "hosts").iterdir() if mark.name.isdigit()]

    def command(self, *arguments: str) -> str:
        """Run a command of this appliance that succeeds; return its standard output."""
        ran = subprocess.run(
            [str(self.program), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def client(self) -> httpx.Client:
        """Return an HTTP client with a token."""
        return http_client(self.url, headers={"Authorization": f"Bearer {TOKEN}"})


def fetch(address: str, **more: Any) -> httpx.Response:
    """GET ``address``, with a timeout of ``PATIENCE`` seconds and without proxies."""
    options: dict[str, Any] = {"timeout": PATIENCE, "verify": certificates(), **more}
    return httpx.get(address, trust_env=False, **options)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until ``condition`` returns a true value and return it; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


async def until(condition: Callable[[], Any]) -> None:
    """Return once ``condition`` is true; fail after ``PATIENCE`` seconds, so that no test hangs."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def link_weights(home: Path) -> None:
    """Let ``home`` use the weights that earlier test runs have downloaded."""
    (WEIGHTS / "weights").mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "weights").exists():
        (home / "weights").symlink_to(WEIGHTS / "weights")
