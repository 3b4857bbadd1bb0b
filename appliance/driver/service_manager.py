"""Tells systemd when the appliance is ready and when it stops (``sd_notify(3)``)."""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

_log = logging.getLogger(__name__)

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
#: Seconds that a stop may take after the running predictions have ended: Ray and all processes are stopped.
STOP_MARGIN: Final = 60.0


def ready(url: str) -> None:
    _notify("READY=1", f"STATUS=serving at {url}")


def standing_by(status: str) -> None:
    """Report that the start is complete as far as possible: another machine is the head."""
    _notify("READY=1", f"STATUS={status}")


def restarting(reason: str) -> None:
    """Report that the driver restarts itself. The service stays active."""
    _notify(f"STATUS=restarting: {reason}")


def stopping(drain_timeout: float) -> None:
    """Report the stop, and request time for it, because the drain timeout may be longer than in the unit."""
    microseconds = round((drain_timeout + STOP_MARGIN) * 1e6)
    _notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={microseconds}", "STATUS=stopping")


def _notify(*assignments: str) -> None:
    """Send ``assignments`` to the service manager, if it has started this process with ``Type=notify``."""
    address = os.environ.get(SOCKET_VARIABLE)
    if not address:
        return
    if address.startswith("@"):  # a socket in Linux' abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.connect(address)
            manager.sendall("\n".join(assignments).encode())
    except OSError as error:
        _log.warning(
            "cannot notify systemd (%s) at the socket %s from %s: %s: check that the unit has Type=notify",
            assignments[0],
            os.environ[SOCKET_VARIABLE],
            SOCKET_VARIABLE,
            error.strerror or error,
        )
