"""The zygote, as a child process of a driver."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from appliance.driver.supervisor import Supervisor
from appliance.gateway.settings import GatewaySettings
from appliance.runners import hidden_packages, preloaded_modules


def supervisors_of_head(settings: GatewaySettings) -> list[Supervisor]:
    """Return the supervisor of the zygote of ``appliance serve``; none if this machine runs no models."""
    hardware = settings.hardware
    if not hardware.runs_models:
        return []

    def modules() -> list[str]:
        # Models that are loaded at the start come first, because their modules are needed first.
        models = sorted(settings.in_force.models, key=lambda model: not (model.pin or model.preload))
        kinds = dict.fromkeys(model.kind for model in models)
        return [name for kind in kinds for name in preloaded_modules(kind, hardware.kind)]

    return [supervisor(settings.home, settings.zygote_socket, hardware.kind, modules)]


def supervisor(
    home: Path, socket: Path, kind: Literal["cpu", "cuda"], modules: Callable[[], Iterable[str]]
) -> Supervisor:
    """Return the supervisor of a zygote that listens at ``socket``.

    ``modules`` returns the modules to import at each start. ``kind`` is that of the machine's first device.
    """

    def command() -> list[str]:
        preload = ",".join(dict.fromkeys(modules()))
        hidden = ",".join(hidden_packages(kind))
        module = [sys.executable, "-m", "appliance.worker.zygote"]
        return [*module, "--socket", str(socket), "--preload", preload, "--hide", hidden]

    return Supervisor("zygote", command, home / "logs" / "zygote.log")
