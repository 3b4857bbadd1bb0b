"""Weights that are read before they are asked for: how much, and when not."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from appliance import machine
from appliance.config import ModelConfig
from appliance.gateway.catalogue.catalogue import describe
from appliance.gateway.engine.prefetch import Prefetch
from appliance.scheduler import Capacity, Demand, Scheduler
from appliance.weights import read_ahead
from tests.support.engine_bench import catalogue_of

KIB = 1024


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(b"a" * 3000 * KIB)
    (folder / "inner" / "b.safetensors").write_bytes(b"b" * 10)
    return folder


def test_everything_is_read_within_the_budget(weights: Path) -> None:
    running = threading.Event()
    assert read_ahead(weights, 1 << 30, running) == 3000 * KIB + 10
    assert read_ahead(weights, 1500 * KIB, running) == 1500 * KIB
    assert read_ahead(weights / "a.safetensors", 1 << 30, running) == 3000 * KIB
    assert read_ahead(weights / "nothing", 1 << 30, running) == 0


def test_nothing_is_read_once_it_is_to_stop(weights: Path) -> None:
    stopped = threading.Event()
    stopped.set()
    assert read_ahead(weights, 1 << 30, stopped) == 0


async def test_the_next_model_is_read_while_another_makes_room(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[Path, int]] = []
    monkeypatch.setattr("appliance.weights.read_ahead", lambda place, budget, _: read.append((place, budget)))
    monkeypatch.setattr(machine, "available_memory", lambda: 1000)

    def entry(name: str) -> Any:
        source = {"name": name, "kind": "embeddings", "source": {"path": str(weights)}}
        return describe(ModelConfig.model_validate(source), "none", 0.0)[1]

    names = ("a/here", "a/next", "a/later")
    demands = [Demand(model=name, concurrency=1, memory=10) for name in names]
    scheduler = Scheduler([Capacity("cpu", 10)], demands)
    subject = Prefetch(catalogue_of(*map(entry, names)), scheduler, tmp_path)
    scheduler.queued("runs", "a/here", 0.0)
    scheduler.decide(0.0)
    subject.update(0.0)  # it is being loaded already
    scheduler.loaded("a/here", 1.0, ())
    scheduler.decide(1.0)
    scheduler.queued("waits", "a/next", 2.0)
    scheduler.queued("waits longer", "a/later", 3.0)
    for now in (3.0, 4.0):
        scheduler.decide(now)
        subject.update(now)  # once is enough
    await asyncio.sleep(0)
    while not read:
        await asyncio.sleep(0.005)
    assert read == [(weights, 500)]
