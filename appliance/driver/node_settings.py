"""The options of `appliance join`, and the data folder of a node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from appliance.config import HardwareConfig
from appliance.config.sections import DeviceConfig
from appliance.domain.errors import ApplianceError
from appliance.driver import node_http
from appliance.nodes.registry import cluster_folder

_MAX_SOCKET_PATH: Final = 107  # bytes: unix(7)
_MAX_REPLICAS: Final = 999_999  # numbers in the names of sockets have at most so many digits


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `appliance join`."""

    heads: tuple[tuple[str, int], ...]  # host and port of each machine that can be the head
    name: str
    data: str  # absolute path of the data folder
    port: int
    address: str | None  # the address of this machine from which it connects
    threads: int | None  # CPU threads that one model may use
    memory: int | None  # bytes of main memory for models
    devices: dict[str, int]  # bytes by name of logical device; empty: the devices of the machine
    listen: node_http.Listen | None = None  # None: this machine does not answer HTTP

    @property
    def hardware(self) -> HardwareConfig:
        return HardwareConfig(
            devices=tuple(DeviceConfig(name=name, memory=size) for name, size in self.devices.items())
            or "auto",
            threads=self.threads,
            host_memory=self.memory,
        )

    @property
    def home(self) -> Path:
        return Path(self.data)

    @property
    def run_dir(self) -> Path:
        return self.home / "run"

    @property
    def zygote_socket(self) -> Path:
        return self.run_dir / "zygote.sock"

    @property
    def http(self) -> node_http.HttpSettings | None:
        if self.listen is None:
            return None
        return node_http.HttpSettings(
            listen=self.listen,
            listener=str(self.run_dir / "http.sock"),
            cluster=str(cluster_folder(self.home)),
            heads=self.heads,
            own_address=self.address,
        )


def prepare_home(settings: NodeSettings) -> Path:
    """Create the data folder and its folders; return the log file.

    Raises:
        ApplianceError: a file or folder cannot be created or written.
    """
    home = settings.home
    log = home / "logs" / "node.log"
    _check_sockets(settings)
    try:
        for folder in (home, settings.run_dir, log.parent, home / "cache", cluster_folder(home)):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log.touch(mode=0o600)
    except OSError as error:
        raise ApplianceError(
            f"the data folder {home} cannot be used: {error.filename}: {error.strerror}: change the owner to "
            "the user who runs the node, or choose another folder with --home or APPLIANCE_HOME"
        ) from error
    return log


def _check_sockets(settings: NodeSettings) -> None:
    """Check that paths of sockets, which contain the name of the node, are not too long.

    Raises:
        ApplianceError: they are.
    """
    longest = settings.run_dir / f"runner-{settings.name}-{_MAX_REPLICAS}-worker.sock"
    excess = len(os.fsencode(longest)) - _MAX_SOCKET_PATH
    if excess > 0:
        raise ApplianceError(
            f"the paths of sockets such as {longest} are {excess} bytes too long: choose a shorter name with "
            "--name, or a folder with a shorter path with --home"
        )
