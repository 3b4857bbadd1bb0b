"""Machines with addresses of their own, as network namespaces of this machine. Needs root and iproute2."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final


def available() -> bool:
    """Return whether this process may create network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"probe-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        _ip("netns", "delete", name)
    return made.returncode == 0


class Network:
    """Machines on one network, which this process can reach too."""

    def __init__(self, names: Sequence[str]) -> None:
        """Create one machine for each name. ``close`` removes them."""
        tag = secrets.token_hex(3)
        net = 16 + secrets.randbelow(200), secrets.randbelow(256)
        self.own_address: Final = f"10.{net[0]}.{net[1]}.254"
        self.addresses: Final = {name: f"10.{net[0]}.{net[1]}.{n}" for n, name in enumerate(names, 1)}
        self._bridge: Final = f"br{tag}"
        self._namespaces: Final = {name: f"{name}-{tag}" for name in names}
        self._cables: Final = {name: f"v{n}{tag}" for n, name in enumerate(names, 1)}
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("address", "add", f"{self.own_address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for name in names:
            self._connect(name)

    def _connect(self, name: str) -> None:
        namespace, cable = self._namespaces[name], self._cables[name]
        _ip("netns", "add", namespace)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", cable, "master", self._bridge)
        _ip("link", "set", cable, "up")
        inside = ("netns", "exec", namespace, "ip")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")

    def prefix(self, name: str) -> tuple[str, ...]:
        """Return the words before a command that let it run on a machine."""
        return "ip", "netns", "exec", self._namespaces[name]

    def cut(self, name: str) -> None:
        """Cut the cable of a machine: it keeps running, and nobody reaches it."""
        _ip("link", "set", self._cables[name], "down")

    def mend(self, name: str) -> None:
        _ip("link", "set", self._cables[name], "up")

    def close(self) -> None:
        """Remove the machines and their network. Processes that still run there lose their addresses."""
        for cable, namespace in zip(self._cables.values(), self._namespaces.values(), strict=True):
            _ip("link", "delete", cable)
            _ip("netns", "delete", namespace)
        _ip("link", "delete", self._bridge)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
