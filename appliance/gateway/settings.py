"""Settings of the gateway. This module imports no large libraries, so the driver can use it at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from appliance.config import Config, runtime
from appliance.machine import Device
from appliance.machine.hardware import Hardware, hardware


class ClientFiles(NamedTuple):
    """Files about client certificates, which each start of the appliance creates if ``client_ca`` is set."""

    own: Path  # certificate and key of the UI and of commands
    accepted: Path  # certificates of authorities, and the own certificate
    revoked: Path  # certificate revocation lists; only with ``client_crl``


def client_files(run_dir: Path) -> ClientFiles:
    names = ("own-client.pem", "client-authorities.pem", "client-revocations.pem")
    return ClientFiles(*(run_dir / name for name in names))


class HeadSettings(msgspec.Struct, frozen=True):
    """This machine as the head of a cluster."""

    name: str
    host: str  # IPv4 address
    session: str  # differs each time that Ray starts
    term: int | None = None  # of the lease, if another machine can take over


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that the driver passes to the gateway. Paths are absolute."""

    config: Config
    home: Path
    host: str
    port: int
    devices: tuple[Device, ...]  # of this machine
    config_file: Path
    ui: bool  # whether there is a UI
    pull: bool  # whether missing weights are downloaded
    #: Environment variables with secrets, which the environment of Ray's processes does not contain.
    secrets: dict[str, str] = {}
    head: HeadSettings | None = None  # None without a cluster

    @property
    def node(self) -> str:
        """Name of this machine in its cluster; "" without a cluster."""
        return "" if self.head is None else self.head.name

    @property
    def hardware(self) -> Hardware:
        return hardware(self.devices, self.config.cluster, self.node)

    @property
    def in_force(self) -> Config:
        """Return the config that was applied last: at a reload, or else at start."""
        return runtime.read(self.run_dir, self.config)

    @property
    def database(self) -> Path:
        return self.home / "appliance.db"

    @property
    def run_dir(self) -> Path:
        """Folder with the sockets and pid files of running processes."""
        return self.home / "run"

    @property
    def zygote_socket(self) -> Path:
        return self.run_dir / "zygote.sock"

    @property
    def ui_socket(self) -> Path:
        return self.run_dir / "ui.sock"

    @property
    def listener_socket(self) -> Path:
        """Unix socket from which gateways get the listening socket of the driver."""
        return self.run_dir / "listener.sock"

    @property
    def agent_socket(self) -> Path:
        """Unix socket from which gateways get the listening socket of the head's agent."""
        return self.run_dir / "agent.sock"

    @property
    def log_file(self) -> Path:
        return self.home / "logs" / "appliance.log"
