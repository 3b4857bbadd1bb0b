"""``python -m appliance.ui``: what ``appliance serve`` starts, to make the pages."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import socket
from pathlib import Path
from typing import Final

import uvicorn

from appliance import config as configuration
from appliance.observability import logs
from appliance.ui.client import Api
from appliance.ui.server import Server
from appliance.ui.session import Sessions

#: How much later than others this process gets its turn, where processors are short: the API goes first.
NICENESS: Final = 5
#: Seconds for which a connection stays open that nobody uses: for longer than the gateway keeps its own.
KEPT: Final = 75


def reserve(path: Path) -> None:
    """Create the socket at ``path`` with access for this user only.

    uvicorn keeps the permissions of an existing socket, but opens a socket that it creates to everyone.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    path.chmod(0o600)


async def serve(arguments: argparse.Namespace) -> None:
    """Answer on the socket until the process is told to end, or the driver has ended."""
    if uploads := os.environ.get("GRADIO_TEMP_DIR"):
        shutil.rmtree(uploads, ignore_errors=True)  # what a crash has left
    api = Api(arguments.api, arguments.certificates)
    config = configuration.load(arguments.config)
    logs.configure(None, config.logging)
    reserve(arguments.socket)
    app = Server(config, api, Sessions(api, arguments.home / "ui.key"))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            uds=str(arguments.socket),
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEPT,
            timeout_graceful_shutdown=1,  # pages hold streams open for as long as they are shown
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


def _step_back() -> None:
    os.nice(NICENESS)
    # Kernels that group processes by session compare those of different sessions by this instead.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def main() -> None:
    """The command line; the driver's end of the standard input says how long to live."""
    parser = argparse.ArgumentParser(prog="python -m appliance.ui")
    parser.add_argument("--socket", type=Path, required=True, help="where to listen")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True, help="data folder")
    parser.add_argument("--api", required=True, help="address of the API on this machine")
    parser.add_argument("--certificates", type=Path, help="whom to believe at that address")
    arguments = parser.parse_args()
    logs.configure()
    _step_back()
    asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
