"""Makes the machine of `appliance serve` the head of a cluster, if models.yaml says so."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.config import ClusterConfig
from appliance.domain.errors import ConfigError, JoinRefused
from appliance.domain.local_url import host_and_port
from appliance.gateway.listener import ListeningSocket
from appliance.gateway.settings import GatewaySettings, HeadSettings

if TYPE_CHECKING:
    from appliance.cluster.ray_node import RayBinding

_UNUSABLE: Final = re.compile(r"[^a-z0-9-]+")


def own_address(config: ClusterConfig) -> str:
    """Return the IPv4 address that ``cluster.address`` stands for.

    Raises:
        ConfigError: this machine does not have the IP address, or it is the loopback address, or it is not in
            ``cluster.private_network``.
    """
    key = "cluster.address"
    try:
        found = socket.getaddrinfo(config.address, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"{config.address} stands for no IPv4 address: {error.strerror}: give the IP address of a "
            "network interface of this machine",
            key=key,
        ) from error
    host = str(found[0][4][0])
    if host == "127.0.0.1":
        raise ConfigError(
            f"{config.address} is {host}, which other machines cannot reach: give the IP address of a "
            "network interface of this machine",
            key=key,
        )
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise ConfigError(
            f"no network interface of this machine has the IP address {host}: {error.strerror}", key=key
        ) from error
    if config.private_network is not None and not config.in_private_network(host):
        raise ConfigError(
            f"{config.address} is {host}, which is not in cluster.private_network, {config.private_network}: "
            "correct one of the two",
            key=key,
        )
    return host


def own_name(given: str | None) -> str:
    """Return ``given``, or else the host name of this machine as the name of a node."""
    if given is not None:
        return given
    name = _UNUSABLE.sub("-", socket.gethostname().partition(".")[0].lower())
    return name[:63].strip("-") or "node"


def prepare(config: ClusterConfig | None, home: Path) -> HeadSettings | None:
    """Create the keys of the cluster, and let Ray use them. Return None without a cluster.

    Raises:
        ConfigError: ``cluster.address`` is not an IP address of this machine.
        ApplianceError: the keys cannot be used.
    """
    if config is None:
        return None
    from appliance.nodes import identity
    from appliance.nodes.registry import cluster_folder

    head = HeadSettings(own_name(config.name), own_address(config), secrets.token_hex(8))
    try:
        own = identity.create_head(
            cluster_folder(home), head.name, [head.host], os.environ.get(identity.TOKEN_VARIABLE)
        )
    except JoinRefused as error:
        raise ConfigError(error.detail, key=identity.TOKEN_VARIABLE) from error
    os.environ |= identity.ray_variables(own)
    return head


def how_to_join(settings: GatewaySettings) -> list[str]:
    """Return the lines of the start message that say how machines join; empty if this machine runs models."""
    cluster, head = settings.config.cluster, settings.head
    if cluster is None or head is None or settings.hardware.runs_models:
        return []
    command = f"appliance join {host_and_port(head.host, cluster.port)}"
    from_here = "the token that `appliance nodes token` prints here"
    return [f"nodes:  this machine runs no models. Run `{command}` on other machines, with {from_here}"]


@contextlib.contextmanager
def agent_listener(
    config: ClusterConfig | None, head: HeadSettings | None, path: Path
) -> Iterator[ListeningSocket | None]:
    """Bind the port of the agent, as long as the driver runs: a new gateway continues to listen on it."""
    if config is None or head is None:
        yield None
        return
    with ListeningSocket(head.host, config.port, path, keys="cluster.port or cluster.address") as listener:
        yield listener


def ray_binding(config: ClusterConfig | None, head: HeadSettings | None) -> RayBinding | None:
    """Return the address and ports for Ray; None without a cluster."""
    if config is None or head is None:
        return None
    from appliance.cluster.ray_node import RayBinding

    ports = config.ports
    return RayBinding(
        node=head.name,
        host=head.host,
        gcs_port=ports.gcs,
        node_manager_port=ports.node_manager,
        object_manager_port=ports.object_manager,
        worker_ports=ports.workers,
    )
