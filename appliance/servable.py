"""Which of the configured models can be served; one that cannot be is left out, and the reason is kept."""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance import catalogue, weights
from appliance.catalogue import Card, Entry
from appliance.config import Config, ModelConfig
from appliance.errors import WeightsError
from appliance.hardware import Device
from appliance.placement import demand, training_demand
from appliance.scheduler import Demand


class Servable(msgspec.Struct, frozen=True, kw_only=True):
    """What of a config can be served, in its order."""

    config: Config  # of the models that can be, with what only their weights say filled in
    described: tuple[tuple[Card, Entry], ...]
    demands: tuple[Demand, ...]  # also those of trainings
    left_out: dict[str, str]  # model -> why it cannot be served


def servable(config: Config, home: Path, devices: tuple[Device, ...], now: float) -> Servable:
    """Try each model of ``config`` on a machine with these devices; ``now`` is when versions are first seen.

    Its interface, version and size are worked out here, at start and at each reload: whatever one model's
    files do to that is said of it alone.
    """
    models: list[ModelConfig] = []
    described: list[tuple[Card, Entry]] = []
    demands: list[Demand] = []
    left_out: dict[str, str] = {}
    for model in config.models:
        try:
            with weights.faults_of(model.name):
                whole = weights.completed(home, model)
                found = described_whole(whole, weights.revision(whole), now)
                asked = demands_of(whole, home, devices)
        except WeightsError as error:
            left_out[model.name] = error.detail
            continue
        models.append(whole)
        described.append(found)
        demands += asked
    return Servable(
        config=config.model_copy(update={"models": tuple(models)}),
        described=tuple(described),
        demands=tuple(demands),
        left_out=left_out,
    )


def described_whole(model: ModelConfig, revision: str, now: float) -> tuple[Card, Entry]:
    """``catalogue.describe``, and all that is made of it later has been tried: it is stored, and trained."""
    card, entry = catalogue.describe(model, revision, now)
    catalogue.trainer_of(entry)
    msgspec.json.encode((entry.document, entry.interface))
    return card, entry


def demands_of(model: ModelConfig, home: Path, devices: tuple[Device, ...]) -> list[Demand]:
    """What a model asks for, and its trainings."""
    trained = [training_demand(model, home)] if model.options.trainable else []
    return [demand(model, home, devices), *trained]
