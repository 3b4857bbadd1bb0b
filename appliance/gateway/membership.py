"""The head of a cluster in the gateway process: the registry of nodes."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from appliance import __version__
from appliance.domain.errors import ApplianceError, NodeError
from appliance.gateway.connections import ConnectionEnds, ForwardedConnection
from appliance.gateway.listener import receive_listener
from appliance.gateway.settings import GatewaySettings
from appliance.runners import preloaded_modules

if TYPE_CHECKING:  # imported only by the head of a cluster
    import uvicorn

    from appliance.nodes.channel import Channel
    from appliance.nodes.messages import OpenGateway
    from appliance.nodes.registry import NodeRegistry


def build_nodes(settings: GatewaySettings) -> NodeRegistry | None:
    """Return the registry of the nodes, not started yet; None without a cluster."""
    cluster, head = settings.config.cluster, settings.head
    if cluster is None or head is None:
        return None
    from appliance.nodes.admission import JoinSettings
    from appliance.nodes.identity import Identity
    from appliance.nodes.registry import NodeRegistry, cluster_folder

    def modules(device: str) -> list[str]:
        kinds = dict.fromkeys(model.kind for model in settings.in_force.models)
        found = (preloaded_modules(kind, "cuda" if device == "cuda" else "cpu") for kind in kinds)
        return list(dict.fromkeys(name for each in found for name in each))

    join_settings = JoinSettings(
        head=head.name,
        version=__version__,
        ray_address=f"{head.host}:{cluster.ports.gcs}",
        ray_token=_ray_token(),
        worker_ports=cluster.ports.workers,
        node_manager_port=cluster.ports.node_manager,
        object_manager_port=cluster.ports.object_manager,
        lost_after=lambda: cluster.lost_after,
        drain_timeout=lambda: settings.in_force.server.drain_timeout,
        modules=modules,
    )
    return NodeRegistry(
        Identity(cluster_folder(settings.home)),
        join_settings,
        session=head.session,
        host=head.host,
        port=cluster.port,
        lost_after=lambda: cluster.lost_after,
    )


def _ray_token() -> str:
    try:
        return os.environ["RAY_AUTH_TOKEN"]
    except KeyError:
        raise ApplianceError(
            "RAY_AUTH_TOKEN is not set: start the appliance with `appliance serve`, which sets it"
        ) from None


async def start_nodes(nodes: NodeRegistry | None, settings: GatewaySettings) -> None:
    """Find the nodes of a previous gateway, and let machines join. Do nothing without a cluster."""
    if nodes is not None:
        await nodes.start(await asyncio.to_thread(receive_listener, settings.agent_socket))


def serve_nodes(nodes: NodeRegistry | None, server: uvicorn.Server, settings: GatewaySettings) -> None:
    """Let the HTTP server answer requests that come through nodes. Do nothing without a cluster."""
    if nodes is None:
        return
    tls = settings.config.server.tls

    def connection(request: OpenGateway, channel: Channel) -> ForwardedConnection:
        if tls is not None and tls.client_ca is not None:
            raise NodeError(
                "clients need a certificate (server.tls.client_ca in models.yaml of the head), which nodes "
                "do not check: send requests to the head"
            )
        return ForwardedConnection(
            server, ConnectionEnds(request.client, request.server, request.scheme), channel
        )

    nodes.serve_http(connection)
