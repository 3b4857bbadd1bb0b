"""The section ``cluster`` of models.yaml: the addresses and ports of an appliance on several machines."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from appliance.domain.section import Section, subsection
from appliance.domain.values import NetworkName, Seconds

_Port = Annotated[int, Field(ge=1, le=65535)]
_MIN_PREFIX: Final = 8  # bits of `private_network`; a shorter prefix is a large part of the internet
_MIN_PARALLEL: Final = 10  # ports
_MIN_LOST_AFTER: Final = 3.0  # seconds; heartbeats are sent every second


def _address(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return value  # a host name
    if address.version != 4 or address.is_unspecified or str(address) == "127.0.0.1":
        raise ValueError(
            f"{value} is not an address that other machines can use: give the IPv4 address of a network "
            "interface of this machine, or a host name for it"
        )
    return value


def _private_network(value: str) -> str:
    network = ipaddress.ip_network(value)
    if network.version != 4 or network.prefixlen < _MIN_PREFIX:
        raise ValueError(
            f"{value} is not the IPv4 network of a few machines: give the network that only the machines of "
            "the cluster can reach, such as 10.9.0.0/24"
        )
    return value


class ClusterPorts(Section):
    """TCP ports that are used between the machines of the cluster."""

    gcs: _Port = Field(default=8771, description="Port of Ray's gcs_server, on the head.")
    node_manager: int = Field(
        default=8772, ge=0, le=65535, description="Port of Ray's raylet, on each machine; 0: any free port."
    )
    object_manager: int = Field(
        default=8773,
        ge=0,
        le=65535,
        description="Port of Ray's object manager, on each machine; 0: any free port.",
    )
    workers: tuple[_Port, _Port] = Field(
        default=(10002, 19999),
        strict=False,
        description="First and last port for Ray's worker processes, on each machine: one for each loaded "
        "model, and a few more.",
    )
    parallel: tuple[_Port, _Port] = Field(
        default=(20000, 20099),
        strict=False,
        description="First and last port on which the parts of a model on several machines find each other. "
        "Only used with private_network.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> ClusterPorts:
        first, last = self.workers
        if last - first < 99:
            raise ValueError("workers: give a range of at least 100 ports, as [first, last]")
        fixed = (self.gcs, self.node_manager, self.object_manager)
        if any(first <= port <= last for port in fixed):
            raise ValueError("workers: the range must not contain the other ports")
        used = [port for port in fixed if port]
        if len(set(used)) != len(used):
            raise ValueError("gcs, node_manager and object_manager must be different ports")
        return self

    @property
    def parallel_conflict(self) -> str | None:
        """The error message about ``parallel``; None if the range can be used."""
        first, last = self.parallel
        if last - first < _MIN_PARALLEL - 1:
            return f"parallel: give a range of at least {_MIN_PARALLEL} ports, as [first, last]"
        fixed = (self.gcs, self.node_manager, self.object_manager)
        if any(first <= port <= last for port in fixed) or not (
            last < self.workers[0] or first > self.workers[1]
        ):
            others = "gcs, node_manager, object_manager and workers"
            return f"parallel: the range must not contain the other ports, {others}"
        return None


class ClusterConfig(Section):
    """Makes this machine the head of a cluster, which other machines can join."""

    address: Annotated[str, AfterValidator(_address)] = Field(
        min_length=1,
        description="IPv4 address of a network interface of this machine, or a host name for it. The other "
        "machines connect to it.",
    )
    name: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        description="Name of this machine in the cluster: lower-case letters, digits and hyphens. Default: "
        "its host name.",
    )
    port: _Port = Field(default=8770, description="Port of the agent, which the other machines connect to.")
    lost_after: Seconds = Field(
        default=10.0,
        description="Time without an answer after which a machine counts as lost; at least 3 s. Its "
        "predictions without output then run on other machines; those with output fail and keep it.",
    )
    private_network: Annotated[NetworkName, AfterValidator(_private_network)] | None = Field(
        default=None,
        description="IPv4 network that only the machines of the cluster can reach, such as 10.9.0.0/24. "
        "Needed for models on several machines (`machines`): whoever reaches the ports of these models can "
        "run code on the machines. Machines with an address outside of it get no parts of such models. "
        "Default: no model can use several machines.",
    )
    ports: ClusterPorts = subsection(ClusterPorts(), "Ports that are used between the machines.")
    devices: Literal["gpu", "cpu"] = Field(
        default="gpu",
        description="Devices of the machines that join, if this machine runs no models (hardware.devices: "
        "none): gpu, or cpu for machines without GPUs. Otherwise they need the same kind as this machine.",
    )

    @model_validator(mode="after")
    def _complete(self) -> ClusterConfig:
        if self.lost_after < _MIN_LOST_AFTER:
            raise ValueError("lost_after: give at least 3 s, because heartbeats are sent every second")
        used = (self.ports.gcs, self.ports.node_manager, self.ports.object_manager)
        first, last = self.ports.workers
        if self.port in used or first <= self.port <= last:
            raise ValueError("port: Ray uses this port too (cluster.ports): choose another one")
        if self.private_network is not None:
            self._check_private_network(self.private_network)
        return self

    def _check_private_network(self, network: str) -> None:
        """Check the keys for models on several machines.

        Raises:
            ValueError: one of them cannot be used.
        """
        if self.ports.parallel_conflict is not None:
            raise ValueError(f"ports.{self.ports.parallel_conflict}")
        first, last = self.ports.parallel
        if first <= self.port <= last:
            raise ValueError("port: it is in the range cluster.ports.parallel: choose another one")
        if _is_ip_address(self.address) and not self.in_private_network(self.address):
            raise ValueError(
                f"private_network: {network} does not contain the address of this machine, {self.address}: "
                "correct one of the two"
            )

    def in_private_network(self, address: str) -> bool:
        return self.private_network is not None and (
            ipaddress.ip_address(address) in ipaddress.ip_network(self.private_network)
        )

    def no_parts_reason(self, address: str) -> str | None:
        """Return why a machine with this IP address gets no parts of models on several machines.

        None if it gets some, and also if no model can use several machines.
        """
        if self.private_network is None or self.in_private_network(address):
            return None
        return f"its address {address} is outside of cluster.private_network ({self.private_network})"


def _is_ip_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True
