"""An appliance of several machines: `appliance serve` and `appliance join`, each on a machine of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support.appliance_process import Appliance
from tests.support.network_namespaces import Network

CLUSTER_TOKEN: Final = "a token with which the tests join machines"


class Head(Appliance):
    """The head, on the machine ``name`` of ``network``."""

    def __init__(self, home: Path, config: Path, network: Network, name: str) -> None:
        everywhere = "0.0.0.0"
        variables = {"APPLIANCE_CLUSTER_TOKEN": CLUSTER_TOKEN}
        super().__init__(home, config, host=everywhere, port=8000, variables=variables)
        self.prefix = network.prefix(name)
        self.url = f"http://{network.addresses[name]}:{self.port}"


class Node(Appliance):
    """A node, on the machine ``name`` of ``network``."""

    def __init__(
        self, home: Path, network: Network, name: str, head: str, devices: Mapping[str, str]
    ) -> None:
        """``head`` is the address of the head; ``devices`` are logical devices with their memory."""
        super().__init__(home, None, variables={"APPLIANCE_CLUSTER_TOKEN": CLUSTER_TOKEN})
        self.prefix = network.prefix(name)
        options = [word for device, memory in devices.items() for word in ("--device", f"{device}={memory}")]
        self._arguments = ("join", head, "--name", name, "--home", str(home), *options)

    def start(self, seconds: float = 0.0) -> None:
        """Start to join, and return at once."""
        with self.output.open("a") as output:
            self.process = subprocess.Popen(
                [*self.prefix, str(self.program), *self._arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
