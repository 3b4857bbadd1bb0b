"""Finds the configured models that can be served; other models are left out, each with a reason."""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance import weights
from appliance.builds import environments
from appliance.config import Config, ModelConfig
from appliance.domain.errors import WeightsError
from appliance.gateway.catalogue import catalogue
from appliance.gateway.catalogue.adapters import describe_adapter
from appliance.gateway.catalogue.catalogue import ModelCard, ServedVersion
from appliance.gateway.catalogue.demands import demand, training_demand
from appliance.machine.hardware import Hardware, runs_nowhere
from appliance.runners.adapters import adapters_of
from appliance.scheduler import Demand


class Servable(msgspec.Struct, frozen=True, kw_only=True):
    """The models of a config that can be served, in the order of the config."""

    config: Config  # only models that can be served, with options completed from their weights
    described: tuple[tuple[ModelCard, ServedVersion], ...]
    demands: tuple[Demand, ...]  # of models and of their trainings
    left_out: dict[str, str]  # model or adapter -> why it cannot be served


def servable(config: Config, home: Path, hardware: Hardware, now: float) -> Servable:
    """Describe each model of ``config`` on machines with this hardware; new versions get the time ``now``.

    Runs at start and at each reload. Computes the interface, version and size of each model. An error in the
    files of one model leaves out only that model. Models that no machine can run are left out too.
    """
    models: list[ModelConfig] = []
    described: list[tuple[ModelCard, ServedVersion]] = []
    demands: list[Demand] = []
    left_out: dict[str, str] = {}
    for model in config.models:
        if (reason := runs_nowhere(model, hardware) or _needs_restart(model, config)) is not None:
            left_out[model.name] = reason
            continue
        try:
            with weights.as_weights_errors(model.name):
                environments.require(home, model)
                completed = weights.complete_options(home, model)
                card, entry = catalogue.describe(completed, weights.revision(completed), now)
                catalogue.trainer_of(entry)  # raises if trainings cannot be described
                msgspec.json.encode((entry.document, entry.interface))  # raises if it cannot be served
                needed = [demand(completed, home, hardware)]
                if completed.options.trainable and hardware.runs_models:
                    needed.append(training_demand(completed, home, hardware))
        except WeightsError as error:
            left_out[model.name] = error.detail
            continue
        models.append(completed)
        described.append((card, entry))
        demands += needed
        for adapter in adapters_of(completed):
            try:
                with weights.as_weights_errors(adapter.name):
                    described.append(describe_adapter(adapter, home, entry))
            except WeightsError as error:
                left_out[adapter.name] = error.detail
    return Servable(
        config=config.model_copy(update={"models": tuple(models)}),
        described=tuple(described),
        demands=tuple(demands),
        left_out=left_out,
    )


def _needs_restart(model: ModelConfig, config: Config) -> str | None:
    """Return why a model on several machines has to wait for a restart; None if it has not.

    A reload applies the key ``machines`` at once, but not the section ``cluster``.
    """
    if model.machines == 1 or (config.cluster is not None and config.cluster.private_network is not None):
        return None
    return "it uses several machines, and cluster.private_network needs a restart: restart the appliance"
