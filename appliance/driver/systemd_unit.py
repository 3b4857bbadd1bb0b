"""The systemd unit that runs ``appliance serve`` as a service."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from appliance.domain.errors import ApplianceError
from appliance.driver.service_manager import STOP_MARGIN

_TEMPLATE: Final = """\
[Unit]
Description=Appliance: inference server
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
User={user}
# Variables such as HF_TOKEN and APPLIANCE_TOKEN, one NAME=value a line; the file may be missing.
EnvironmentFile=-{variables}
# Caches of libraries, which would otherwise be in the user's home folder.
Environment={cache} {kernels}
ExecStart={command}
# Apply the edited models.yaml.
ExecReload=/bin/kill -HUP $MAINPID
# Restart after failures, except errors in models.yaml and the command line.
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2
# The first start downloads weights.
TimeoutStartSec=infinity
# {drain:g} s for running predictions (server.drain_timeout), the rest to stop all processes.
TimeoutStopSec={stop}
# Only the main process gets SIGTERM; it stops the others in order.
KillMode=mixed
# The appliance restarts a worker process that the kernel has killed for its memory use.
OOMPolicy=continue
LimitNOFILE=65536
TasksMax=infinity
UMask=0077

NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
# The whole file system is read-only for the appliance, except the data folder and its own /tmp.
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={data}
PrivateTmp=yes
# No PrivateDevices, DeviceAllow or ProtectClock: each of them would hide the GPUs.
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
# No MemoryDenyWriteExecute: PyTorch and vLLM compile code. @debug is allowed: CUDA uses its pidfd_getfd.
SystemCallFilter=~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


class UnitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between the units of two appliances."""

    user: str
    command: Sequence[str]  # absolute path of the program, and its arguments
    home: Path  # data folder
    variables: Path  # file with environment variables
    port: int
    drain_timeout: float  # seconds


def unit(settings: UnitSettings) -> str:
    """Return the text of the unit file.

    Raises:
        ApplianceError: the user or a path contains a character that a unit file cannot express.
    """
    for value in (settings.user, *settings.command, str(settings.home), str(settings.variables)):
        if not value.isprintable():
            raise ApplianceError(
                f"{value!r} cannot be in a systemd unit: it has a control character: rename it"
            )
    program, *arguments = settings.command
    if set(program) & set("\"'\\"):
        raise ApplianceError(
            f"systemd cannot start {program}: its path has a quote or a backslash: install the appliance in a"
            " folder without them"
        )
    cache = settings.home / "cache"
    return _TEMPLATE.format(
        user=_plain(settings.user),
        variables=_plain(str(settings.variables)),
        cache=_quoted(f"XDG_CACHE_HOME={cache}"),
        kernels=_quoted(f"FLASHINFER_WORKSPACE_BASE={cache}"),
        command=" ".join((_quoted(program), *(_quoted(word).replace("$", "$$") for word in arguments))),
        drain=settings.drain_timeout,
        stop=math.ceil(settings.drain_timeout + STOP_MARGIN),
        capabilities="CAP_NET_BIND_SERVICE" if settings.port < 1024 else "",
        data=_quoted(str(settings.home)),
    )


def _plain(value: str) -> str:
    """Escape a value that is not split into words: ``%`` begins a specifier."""
    return value.replace("%", "%%")


def _quoted(value: str) -> str:
    """Quote one word of a list of words (systemd.syntax(7))."""
    escaped = _plain(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if not escaped or set(escaped) & set(" '\"\\;") else escaped
