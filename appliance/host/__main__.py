"""``python -m appliance.host``: an engine host that is spawned because no zygote could be reached."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import msgspec

from appliance import frames
from appliance.host.process import run


def main() -> None:
    """Read the first message, what to load, from the inherited socket; then be a host."""
    parser = argparse.ArgumentParser(prog="python -m appliance.host")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the runner replica")
    arguments = parser.parse_args()
    sock = socket.socket(fileno=arguments.fd)
    order = frames.receive(sock, msgspec.msgpack.Decoder(frames.Fork))
    run(sock, order.spec, Path(order.marks))


if __name__ == "__main__":
    main()
