"""Routes for the machines of a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from appliance import __version__
from appliance.config import ClusterConfig
from appliance.domain.errors import Conflict, NotFound
from appliance.domain.local_url import host_and_port
from appliance.domain.token import Scope
from appliance.gateway.api import audit, requests, responses
from appliance.gateway.api.services import Services, services_of
from appliance.machine import Device, cpu_threads
from appliance.protocols.admin_types import DeviceMemoryUse
from appliance.protocols.node_types import NodeDevice, NodeResponse, NodesResponse
from appliance.protocols.serializers import timestamp

if TYPE_CHECKING:  # imported only by the head of a cluster
    from appliance.nodes.registry import NodeRegistry, NodeStatus


async def get_nodes(request: Request) -> Response:
    await requests.caller(request, Scope.ADMIN)
    return responses.json(NodesResponse(nodes=_all(services_of(request))))


async def drain_node(request: Request) -> Response:
    """``POST /admin/nodes/{name}/drain``: load no more models there; running predictions end first."""
    return await _drain(request, draining=True)


async def undrain_node(request: Request) -> Response:
    """``DELETE /admin/nodes/{name}/drain``: load models there again."""
    return await _drain(request, draining=False)


async def _drain(request: Request, *, draining: bool) -> Response:
    await requests.caller(request, Scope.ADMIN)
    services = services_of(request)
    name = request.path_params["name"]
    if services.nodes is None:
        raise NotFound("this appliance is not a cluster: models.yaml has no section `cluster`")
    if name == services.nodes.head.name:
        raise Conflict(
            f"{name} is the head, which cannot be drained: stop it with `systemctl stop` or Ctrl-C"
        )
    services.nodes.drain(name, draining)
    audit.describe(request, object=name, after={"draining": draining})
    (found,) = (node for node in _all(services) if node.name == name)
    return responses.json(found, 202)


def _all(services: Services) -> list[NodeResponse]:
    if services.nodes is None:
        return []
    used = {device.name: device for device in services.engine.status().devices}
    section = services.config.cluster
    nodes = [_node(each, used, section) for each in services.nodes.statuses()]
    for node in nodes:
        node.staying = services.engine.nodes.staying(node.name)
    return [_head(services, services.nodes, used), *nodes]


def _head(services: Services, nodes: NodeRegistry, used: dict[str, DeviceMemoryUse]) -> NodeResponse:
    head = nodes.head
    own = [device for device in services.devices if device.name.rpartition("/")[0] in {"", head.name}]
    return NodeResponse(
        name=head.name,
        role="head",
        address=host_and_port(head.host, head.port),
        state="ready",
        since=timestamp(services.started_at),
        reason=None,
        version=__version__,
        threads=services.config.hardware.threads or max(1, cpu_threads() - 1),
        devices=_devices("", own, used),
    )


def _node(
    status: NodeStatus, used: dict[str, DeviceMemoryUse], section: ClusterConfig | None
) -> NodeResponse:
    facts = status.facts
    return NodeResponse(
        name=facts.name,
        role="node",
        address=host_and_port(facts.host, facts.port),
        state=status.state,
        since=timestamp(status.since),
        reason=status.reason,
        no_parts_reason=None if section is None else section.no_parts_reason(facts.host),
        version=facts.version,
        threads=facts.threads,
        devices=_devices(f"{facts.name}/", facts.devices, used),
    )


def _devices(prefix: str, devices: Iterable[Device], used: dict[str, DeviceMemoryUse]) -> list[NodeDevice]:
    """Describe devices whose names in the cluster are ``prefix`` and the local name."""
    found = []
    for device in devices:
        name = f"{prefix}{device.name}"
        memory = used.get(name)
        found.append(
            NodeDevice(
                name=name,
                label=device.label,
                memory=device.memory,
                used=None if memory is None else sum(memory.reserved.values()) + memory.foreign,
                models={} if memory is None else memory.reserved,
            )
        )
    return found


ROUTES: Final = (
    Route("/admin/nodes", get_nodes, methods=["GET"]),
    Route("/admin/nodes/{name}/drain", drain_node, methods=["POST"]),
    Route("/admin/nodes/{name}/drain", undrain_node, methods=["DELETE"]),
)
