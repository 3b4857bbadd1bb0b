"""Nodes, models and answers of an engine for unit tests of the scheduler with several nodes."""

from __future__ import annotations

from typing import Any

from appliance.scheduler import (
    Capacity,
    Decision,
    Demand,
    Load,
    Residency,
    Scheduler,
    Sleep,
    SleepLevel,
    Unload,
    Wake,
)

GIB = 1024**3
LEVELS = list(SleepLevel)
MANY = [1000, 0]  # devices: without and with a backlog


def node(name: str, *gpus: int, main: int | None = None) -> list[Capacity]:
    """The devices of a node: GPUs of so many GiB, and main memory."""
    devices = [Capacity(f"{name}/cuda:{n}", size * GIB, node=name) for n, size in enumerate(gpus)]
    if main is None:
        return devices
    return [*devices, Capacity(f"{name}/cpu", main * GIB, is_main_memory=True, node=name)]


def nodes(names: str, gib: int = 10) -> list[Capacity]:
    """Nodes with one GPU each, named by letters."""
    return [capacity for name in names for capacity in node(name, gib)]


def model(name: str, gib: int = 6, machines: int = 1, **options: Any) -> Demand:
    return Demand(model=name, memory=gib * GIB, machines=machines, **{"concurrency": 2, **options})


def on(*names: str) -> tuple[str, ...]:
    """The first device of each of these nodes."""
    return tuple(f"{name}/cuda:0" for name in names)


def finish(subject: Scheduler, decisions: list[Decision], now: float) -> list[Decision]:
    """Confirm these loads, unloads, sleeps and wakes at once."""
    for each in decisions:
        match each:
            case Load(name):
                subject.loaded(name, now, LEVELS)
            case Unload(name):
                subject.unloaded(name, now)
            case Sleep(name):
                subject.asleep(name, now)
            case Wake(name):
                subject.woken(name, now)
    return decisions


def load(subject: Scheduler, *names: str, now: float = 0.0) -> None:
    """Load these models, one after the other."""
    for name in names:
        subject.request_load(name)
        finish(subject, subject.decide(now), now)
        assert subject.residency(name) is Residency.READY


def adopt(subject: Scheduler, places: dict[str, tuple[str, ...]], memory: int = 6) -> None:
    for name, devices in places.items():
        subject.adopted(name, devices, memory * GIB, 0.0, levels=(), level=None)


def unloads(decisions: list[Decision]) -> list[str]:
    return [each.model for each in decisions if isinstance(each, Unload)]


def loads(decisions: list[Decision]) -> dict[str, tuple[str, ...]]:
    return {each.model: each.devices for each in decisions if isinstance(each, Load)}
