"""``python -m appliance.worker.process``: a worker process that is started without the zygote."""

from __future__ import annotations

import argparse
import socket

import msgspec

from appliance.worker import protocol
from appliance.worker.process.lifecycle import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m appliance.worker.process")
    parser.add_argument(
        "--fd",
        type=int,
        required=True,
        help="number of the inherited descriptor of the socket to the runner replica",
    )
    arguments = parser.parse_args()
    sock = socket.socket(fileno=arguments.fd)
    request = protocol.receive(sock, msgspec.msgpack.Decoder(protocol.Fork))
    run(sock, request)


if __name__ == "__main__":
    main()
