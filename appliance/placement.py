"""What each configured model asks of the machine, as the scheduler wants to know it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from appliance import weights
from appliance.config import Config, ModelConfig
from appliance.config.weight import Weight
from appliance.hardware import Device
from appliance.scheduler import Capacity, Demand, Origin, Scheduler

TRAINER_IDLE: Final = 60.0  # seconds without a training after which its memory is given back


def demand(model: ModelConfig, home: Path, kind: Literal["cpu", "cuda"]) -> Demand:
    """What the scheduler must find room for, for one configured model."""
    share, memory, devices, origin = None, None, 1, Origin.DECLARED
    if model.memory is not None:
        memory = model.memory
    elif model.gpu is not None:
        share = min(1.0, model.gpu)
        devices = max(1, int(model.gpu))
    else:
        weight = weights.weigh(weights.folder(home, model)) if model.source else Weight()
        memory, origin = model.options.footprint(weight, kind), Origin.ESTIMATED
    return Demand(
        model=model.name,
        concurrency=model.options.predictions_at_once,
        memory=memory,
        share=share,
        origin=origin,
        devices=devices,
        pin=model.pin,
        preload=model.preload,
        idle_unload_after=model.idle_unload_after,
        priority=model.priority,
    )


def training_demand(model: ModelConfig, home: Path) -> Demand:
    """What training new versions of the model takes, while it is done."""
    weight = weights.weigh(weights.folder(home, model)) if model.source else Weight()
    return Demand(
        model=model.training_key,
        concurrency=1,
        memory=model.options.training_footprint(weight),
        origin=Origin.ESTIMATED,
        idle_unload_after=TRAINER_IDLE,
    )


def build_scheduler(config: Config, home: Path, devices: tuple[Device, ...]) -> Scheduler:
    """The scheduler over these devices for every configured model."""
    capacities = [Capacity(device.name, device.memory) for device in devices]
    return Scheduler(capacities, demands(config, home, devices[0].kind))


def demands(config: Config, home: Path, kind: Literal["cpu", "cuda"]) -> list[Demand]:
    """What every configured model asks for, and every training of one."""
    return [
        *(demand(model, home, kind) for model in config.models),
        *(training_demand(model, home) for model in config.models if model.options.trainable),
    ]
