"""An appliance of several machines: `appliance serve` and `appliance join`, each on a machine of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.support.appliance_process import Appliance, wait_for
from tests.support.network_namespaces import Network

CLUSTER_TOKEN: Final = "a token with which the tests join machines"

#: All machines in the order of their creation. The report of a failed test has the output of the last ones.
CREATED: Final[list[Appliance]] = []


class Head(Appliance):
    """The head, on the machine ``name`` of ``network``."""

    def __init__(
        self,
        home: Path,
        config: Path,
        network: Network,
        name: str,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        everywhere = "0.0.0.0"
        variables = {"APPLIANCE_CLUSTER_TOKEN": CLUSTER_TOKEN, **(variables or {})}
        super().__init__(home, config, host=everywhere, port=8000, variables=variables)
        CREATED.append(self)
        self.prefix = network.prefix(name)
        self.name = name
        self.url = f"http://{network.addresses[name]}:{self.port}"

    def start_waiting(self) -> None:
        """Start while another machine is the head, and return at once."""
        arguments = ("serve", "--config", str(self.config), "--port", str(self.port))
        options = ("--host", str(self.host), "--no-ui")
        self.process = _started(self, [*self.prefix, str(self.program), *arguments, *options])


class Node(Appliance):
    """A node, on the machine ``name`` of ``network``."""

    def __init__(
        self, home: Path, network: Network, name: str, head: str, *options: str, token: str = CLUSTER_TOKEN
    ) -> None:
        """``head`` is the address of the head; ``options`` are those of `appliance join`."""
        super().__init__(home, None, variables={"APPLIANCE_CLUSTER_TOKEN": token})
        CREATED.append(self)
        self.prefix = network.prefix(name)
        self.name = name
        self._arguments = ("join", head, "--name", name, "--home", str(home), *options)

    def start(self, seconds: float = 0.0) -> None:
        """Start to join, and return at once."""
        self.process = _started(self, [*self.prefix, str(self.program), *self._arguments])

    @property
    def joined(self) -> int:
        """How often it has joined."""
        return self.output.read_text().count(f"node {self.name} has joined")

    def wait_until_joined(self, times: int = 1) -> None:
        process = self.process
        assert process is not None
        wait_for(lambda: process.poll() is not None or self.joined >= times, f"{self.name} to join")
        assert process.poll() is None, self.output.read_text()


class HeadAndNodes:
    """A head, and nodes that join it by their names: each a machine of one network."""

    def __init__(
        self, folder: Path, config: str, nodes: Sequence[str], *options: str, **values: object
    ) -> None:
        """``config`` is the text of models.yaml, with ``{address}`` of the head, and names of ``values``.

        ``options`` are those of `appliance join`.
        """
        self.folder = folder
        self.network = Network(["head", *nodes])
        self.address = self.network.addresses["head"]
        file = folder / "models.yaml"
        file.write_text(config.format(address=self.address, **values))
        self.head = Head(folder / "head", file, self.network, "head")
        self.nodes: dict[str, Node] = {}
        self._options = options

    def join(self, name: str) -> None:
        node = Node(self.folder / name, self.network, name, self.address, *self._options)
        self.nodes[name] = node
        node.start()
        node.wait_until_joined()

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill()
        if self.head.process is not None:
            self.head.kill()
        self.network.close()


def _started(machine: Appliance, command: list[str]) -> subprocess.Popen[str]:
    with machine.output.open("a") as output:
        return subprocess.Popen(
            command,
            env=machine.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
