"""The memory and devices that each configured model needs, in the scheduler's types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance import weights
from appliance.config import ModelConfig
from appliance.domain.weight_size import WeightSize
from appliance.machine import Device
from appliance.machine.hardware import Hardware, head_only
from appliance.runners.adapters import AdaptableModel
from appliance.scheduler import Capacity, Demand, Origin, SleepFootprint

TRAINER_IDLE: Final = 60.0  # seconds without a training after which its memory is given back


def demand(model: ModelConfig, home: Path, hardware: Hardware) -> Demand:
    """Return how many devices and how much memory a configured model needs on machines with this hardware.

    If main memory is a device beside others, models can sleep, and models that compute on the CPU are placed
    in main memory.
    """
    share, memory, count, origin = None, None, 1, Origin.DECLARED
    weight = _size(model, home)
    on_host = hardware.with_host_memory and hardware.kind == "cuda" and model.options.on_cpu
    kind = "cpu" if on_host else hardware.kind
    may_sleep = hardware.with_host_memory and not on_host and model.sleep == "auto"
    may_sleep = may_sleep and model.machines == 1
    sleep = model.options.sleep_footprint(weight, kind) if may_sleep else None
    if model.memory is not None:
        memory = model.memory
    elif model.gpu is not None:
        share = min(1.0, model.gpu)
        count = max(1, int(model.gpu))
    else:
        memory = model.options.footprint(_part(weight, model, home), kind) + _adapter_size(model, home)
        origin = Origin.ESTIMATED
    return Demand(
        model=model.name,
        concurrency=model.options.predictions_at_once,
        memory=memory,
        share=share,
        origin=origin,
        devices=count,
        machines=model.machines,
        pin=model.pin,
        preload=model.preload,
        idle_unload_after=model.idle_unload_after,
        priority=model.priority,
        sleep_footprint=None if sleep is None else SleepFootprint(*sleep),
        on_cpu=on_host,
        nodes=None if head_only(model) is None else _head(hardware),
    )


def _head(hardware: Hardware) -> frozenset[str] | None:
    """Return the node of this machine; None without a cluster."""
    return frozenset({hardware.node}) if hardware.node else None


def _adapter_size(model: ModelConfig, home: Path) -> int:
    """Return the bytes of the model's adapters, if they take memory of their own once they are loaded."""
    if not isinstance(model, AdaptableModel) or not model.ADAPTERS_ADD_MEMORY:
        return 0
    folders = [weights.folder(home, adapter.as_model) for adapter in model.adapters]
    return sum(weights.weight_size_of(path).stored for path in (*folders, *model.local_adapters.values()))


def training_demand(model: ModelConfig, home: Path, hardware: Hardware) -> Demand:
    """Return how much memory a training of the model needs while it runs. Trainings run on the head only."""
    weight = _size(model, home)
    return Demand(
        model=model.training_key,
        concurrency=1,
        memory=model.options.training_footprint(weight),
        origin=Origin.ESTIMATED,
        idle_unload_after=TRAINER_IDLE,
        nodes=_head(hardware),
    )


def _size(model: ModelConfig, home: Path) -> WeightSize:
    if model.source is None:
        return WeightSize()
    return weights.weight_size_of(weights.folder(home, model), model.weight_variant)


def _part(weight: WeightSize, model: ModelConfig, home: Path) -> WeightSize:
    """Return the weights on each of the machines that hold the model together."""
    if model.machines == 1:
        return weight
    return weight.on_each_of(model.machines, weights.embedding_parameters(weights.folder(home, model)))


def capacities(devices: Sequence[Device], *, may_hold_parts: bool = True) -> list[Capacity]:
    """Return the capacities of the devices of one machine for the scheduler.

    ``may_hold_parts`` is whether models on several machines may use the machine.
    """
    return [
        Capacity(
            device.name,
            device.memory,
            is_main_memory=device.is_main_memory,
            node=device.node,
            may_hold_parts=may_hold_parts,
        )
        for device in devices
    ]
