"""Program that installs and starts an unpacked bundle in a network namespace, and prints the answers as JSON.

``unshare --user --map-root-user --net python offline_site.py BUNDLE HOME PORT REQUESTS``, where REQUESTS is a
list of models and inputs as JSON. The namespace has a loopback interface only, without routes.
"""

from __future__ import annotations

import fcntl
import json
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SECONDS = 240.0
_SET_FLAGS = 0x8914  # SIOCSIFFLAGS
_UP = 0x41  # IFF_UP | IFF_RUNNING


def loopback() -> None:
    """Switch the loopback interface on."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh", b"lo", _UP))


def routes() -> list[str]:
    """The routes of the namespace, by the names of their interfaces."""
    return [line.split()[0] for line in Path("/proc/net/route").read_text().splitlines()[1:]]


def call(url: str, body: Any = None) -> Any:
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json", "Prefer": "wait=60"}
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data, headers), timeout=SECONDS) as answer:
        return json.load(answer)


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"serve has ended with {process.returncode}"
        try:
            call(f"{url}/readyz")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"waited {SECONDS:g} s in vain for the appliance")


def main(bundle: Path, home: str, port: str, requests: str) -> None:
    loopback()
    assert routes() == [], "the namespace reaches other machines"
    subprocess.run(
        [bundle / "install", "--home", home, "--python", sys.executable], check=True, stdout=sys.stderr
    )
    url = f"http://127.0.0.1:{port}"
    serve = subprocess.Popen([bundle / "serve", "--port", port, "--no-ui"], stdout=sys.stderr)
    try:
        wait_until_ready(url, serve)
        answers = [
            call(f"{url}/v1/models/{model}/predictions", {"input": input})
            for model, input in json.loads(requests)
        ]
    finally:
        serve.send_signal(signal.SIGTERM)
        status = serve.wait(SECONDS)
    print(json.dumps({"answers": answers, "status": status}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
