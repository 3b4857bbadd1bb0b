"""What each configured model asks of the machine, as the scheduler wants to know it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from appliance import weights
from appliance.config import Config, ModelConfig
from appliance.config.weight import Weight
from appliance.hardware import Device
from appliance.scheduler import Asleep, Capacity, Demand, Origin, Scheduler

TRAINER_IDLE: Final = 60.0  # seconds without a training after which its memory is given back


def demand(model: ModelConfig, home: Path, kind: Literal["cpu", "cuda"], *, beside: bool = False) -> Demand:
    """What the scheduler must find room for, for one configured model, on devices of that kind.

    ``beside`` says whether main memory is kept count of beside the devices.
    """
    share, memory, devices, origin = None, None, 1, Origin.DECLARED
    weight = weights.weigh(weights.folder(home, model)) if model.source else Weight()
    on_host = beside and kind == "cuda" and model.options.ON_CPU
    kind = "cpu" if on_host else kind
    sleep = model.options.asleep(weight, kind) if beside and not on_host and model.sleep == "auto" else None
    if model.memory is not None:
        memory = model.memory
    elif model.gpu is not None:
        share = min(1.0, model.gpu)
        devices = max(1, int(model.gpu))
    else:
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
        asleep=None if sleep is None else Asleep(*sleep),
        on_host=on_host,
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


def capacities(devices: tuple[Device, ...]) -> list[Capacity]:
    """The devices as the scheduler knows them."""
    return [Capacity(device.name, device.memory, host=device.host) for device in devices]


def build_scheduler(config: Config, home: Path, devices: tuple[Device, ...]) -> Scheduler:
    """The scheduler over these devices for every configured model."""
    return Scheduler(capacities(devices), demands(config, home, devices[0].kind, beside=devices[-1].host))


def demands(
    config: Config, home: Path, kind: Literal["cpu", "cuda"], *, beside: bool = False
) -> list[Demand]:
    """What every configured model asks for, and every training of one; see ``demand``."""
    return [
        *(demand(model, home, kind, beside=beside) for model in config.models),
        *(training_demand(model, home) for model in config.models if model.options.trainable),
    ]
