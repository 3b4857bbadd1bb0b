"""The hardware of the machines that run models. It is known before the first node of a cluster has joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from appliance.config import ClusterConfig, CogModel, ModelConfig
from appliance.machine import Device

#: Parts of sentences about models and trainings that run only on the head, if the head runs no models.
NO_MODELS: Final = "which runs no models (hardware.devices in models.yaml is none)"
LET_HEAD_RUN: Final = "let the head run models (hardware.devices: auto)"


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """What all machines that run models have in common, and whether this machine is one of them."""

    kind: Literal["cpu", "cuda"]  # of the devices that models are placed on first
    with_host_memory: bool  # whether main memory is a device beside others: models can sleep there
    node: str = ""  # name of this machine in a cluster; "" without a cluster
    runs_models: bool = True  # false for the head of a cluster with `hardware.devices: none`


def hardware(devices: Sequence[Device], cluster: ClusterConfig | None, node: str = "") -> Hardware:
    """Return the hardware of a machine with these devices; without devices, that of ``cluster.devices``.

    ``node`` is the name of this machine in its cluster.
    """
    if devices:
        return Hardware(
            kind=devices[0].kind, with_host_memory=devices[-1].is_main_memory, node=devices[0].node or node
        )
    assert cluster is not None, "`hardware.devices: none` is only valid with a section `cluster`"
    gpus = cluster.devices == "gpu"  # nodes with GPUs have main memory beside them, see `discover`
    return Hardware(kind="cuda" if gpus else "cpu", with_host_memory=gpus, node=node, runs_models=False)


def head_only(model: ModelConfig) -> str | None:
    """Return why the model runs only on the head of a cluster; None if it runs on all nodes."""
    if isinstance(model, CogModel):
        return "Cog project"
    if model.environment is not None:
        return "environment of its own"
    return None


def runs_nowhere(model: ModelConfig, hardware: Hardware) -> str | None:
    """Return why no machine can run the model; None if a machine can.

    A model that runs only on the head cannot run if the head runs no models.
    """
    reason = head_only(model)
    if reason is None or hardware.runs_models:
        return None
    return f"{reason}: it runs only on the head of the cluster, {NO_MODELS}: remove it, or {LET_HEAD_RUN}"
