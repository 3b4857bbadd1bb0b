"""``python -m appliance.ui``: the UI process, which ``appliance serve`` starts."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Final

import uvicorn

from appliance import config as configuration
from appliance.observability import logs
from appliance.ui.client import Api
from appliance.ui.server import UiServer
from appliance.ui.session import Sessions

#: Nice value of this process: the API has priority when processors are busy.
NICENESS: Final = 5
#: Seconds for which idle connections stay open: longer than the gateway keeps its own to this process.
KEEP_ALIVE: Final = 75


def reserve(path: Path) -> None:
    """Create a Unix socket at ``path`` that only the current user can open.

    uvicorn keeps the permissions of an existing socket, but creates sockets that everyone can open.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as created:
        created.bind(str(path))
    path.chmod(0o600)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve the UI on the socket until the process gets a signal to end or the driver ends."""
    api = Api(arguments.api, arguments.certificates, arguments.client_certificate)
    config = configuration.load(arguments.config)
    logs.configure(None, config.logging)
    reserve(arguments.socket)
    app = UiServer(config, api, Sessions(api, arguments.home / "ui.key"))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            uds=str(arguments.socket),
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,  # open pages keep streams open
        )
    )

    def driver_ended() -> None:
        if not os.read(0, 1024):
            server.should_exit = True
            asyncio.get_running_loop().remove_reader(0)

    asyncio.get_running_loop().add_reader(0, driver_ended)
    try:
        await server.serve()
    finally:
        await app.close()


def _lower_priority() -> None:
    os.nice(NICENESS)
    # With autogroup scheduling, nice values count only within a session; this is the value of the session.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def main() -> None:
    """Parse the arguments and serve, until the driver ends and so closes this process's standard input."""
    parser = argparse.ArgumentParser(prog="python -m appliance.ui")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True, help="data folder")
    parser.add_argument("--api", required=True, help="base URL of the API")
    parser.add_argument("--certificates", type=Path, help="file of certificates to trust there")
    parser.add_argument("--client-certificate", type=Path, help="file with a certificate and its key")
    arguments = parser.parse_args()
    logs.configure()
    _lower_priority()
    os.environ |= json.loads(sys.stdin.readline())  # variables with secrets to which models.yaml refers
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
