"""The bodies of the responses about the machines of a cluster, as structs. Sizes are in bytes."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from appliance.protocols.response_types import Time


class NodeDevice(Struct, kw_only=True):
    """A device of a machine."""

    name: Annotated[str, Meta(description="Name in the cluster, such as node/cuda:0")]
    label: str
    memory: Annotated[int, Meta(description="Bytes that models may reserve")]
    used: Annotated[
        int | None,
        Meta(description="Bytes that models and other programs use; null if the node is not a member now"),
    ]
    models: Annotated[dict[str, int], Meta(description="Reserved bytes by model")]


class NodeResponse(Struct, kw_only=True):
    """A machine of a cluster."""

    name: str
    role: Literal["head", "node"]
    address: Annotated[str, Meta(description="IP address and port of its agent")]
    state: Annotated[
        Literal["ready", "draining", "lost"],
        Meta(description="draining: no more models are loaded there; lost: it does not answer"),
    ]
    since: Annotated[Time, Meta(description="When the state changed")]
    reason: Annotated[str | None, Meta(description="Why the node was lost")]
    version: Annotated[str, Meta(description="Version of the appliance")]
    threads: Annotated[int, Meta(description="CPU threads that one model may use")]
    devices: list[NodeDevice]
    staying: Annotated[
        dict[str, str], Meta(description="Why each model is still on a draining node, by model")
    ] = field(default_factory=dict)
    no_parts_reason: Annotated[
        str | None, Meta(description="Why the machine gets no parts of models on several machines")
    ] = None


class NodesResponse(Struct, kw_only=True):
    """The machines of the cluster. The list is empty if models.yaml has no section ``cluster``."""

    nodes: list[NodeResponse]


RESPONSES: Final = (NodesResponse, NodeResponse)
