"""The zygote, as a child process of a driver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from appliance.driver.supervisor import Supervisor
from appliance.machine import Device
from appliance.runners import hidden_packages


def supervisor(home: Path, socket: Path, device: Device, modules: Callable[[], Iterable[str]]) -> Supervisor:
    """Return the supervisor of a zygote that listens at ``socket``.

    ``modules`` returns the modules to import at each start. ``device`` is the first device of the machine.
    """

    def command() -> list[str]:
        preload = ",".join(dict.fromkeys(modules()))
        hidden = ",".join(hidden_packages(device.kind))
        module = [sys.executable, "-m", "appliance.worker.zygote"]
        return [*module, "--socket", str(socket), "--preload", preload, "--hide", hidden]

    return Supervisor("zygote", command, home / "logs" / "zygote.log")
