"""A node of a cluster that answers HTTP, on a machine of its own."""

from __future__ import annotations

from pathlib import Path

from tests.support.cluster import Node
from tests.support.network_namespaces import Network


class HttpNode(Node):
    """A node that answers HTTP at ``url``. It has hardly any memory, so no model is loaded there."""

    def __init__(self, home: Path, network: Network, name: str, head: str) -> None:
        """``head`` is the address of the head."""
        listen = f"{network.addresses[name]}:8000"
        super().__init__(home, network, name, head, "--device", "tiny=1MiB", "--listen", listen)
        self.url = f"http://{listen}"
