"""Applies an edited models.yaml while the appliance runs; unchanged models stay loaded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance import config as configuration
from appliance import weights
from appliance.builds import environments
from appliance.cluster.base import Cluster
from appliance.config import Changes, Config, Report, compare, runtime
from appliance.domain.errors import WeightsError
from appliance.gateway.catalogue.builds import ProjectBuilds
from appliance.gateway.catalogue.catalogue import Catalogue
from appliance.gateway.catalogue.servable import Servable, servable
from appliance.gateway.catalogue.trainings import Trainings
from appliance.gateway.engine import Engine
from appliance.machine.hardware import Hardware, runs_nowhere
from appliance.runners import preloaded_modules
from appliance.runners.adapters import with_downloads
from appliance.store import Store, VersionRow

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Reload:
    """Applies models.yaml again, one reload at a time, on the gateway's event loop."""

    file: Path  # models.yaml
    in_force: Config  # the config that was applied last
    home: Path  # the data folder
    run_dir: Path  # gets the config in force, for gateways that start later
    hardware: Hardware
    catalogue: Catalogue
    store: Store
    cluster: Cluster
    engine: Engine
    builds: ProjectBuilds
    trainings: Trainings
    left_out: dict[str, str]  # model of the config in force that is not served -> why
    pull: bool  # whether missing weights are downloaded

    def __post_init__(self) -> None:
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Report]] = set()

    async def apply(self, configure: Callable[[Config], None]) -> Report:
        """Apply the edited models.yaml; return a report once the changes are in effect.

        Missing weights are downloaded first; Cog projects and environments are built. ``configure`` gets the
        new config and applies all settings except the models. If the caller is cancelled, the reload
        continues.

        Raises:
            ConfigError: the file has an error; nothing has changed.
        """
        task = asyncio.get_running_loop().create_task(self._apply(configure))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel reloads that are not in effect yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _apply(self, configure: Callable[[Config], None]) -> Report:
        async with self._turn:
            edited = await asyncio.to_thread(configuration.load, self.file)
            changes = compare(self.in_force, edited)
            missing = await self._fetch(changes.config)
            found = await asyncio.to_thread(servable, changes.config, self.home, self.hardware, time.time())
            not_served = found.left_out | missing
            await self._preload(found.config)
            fresh = await self._new_catalogue(found)
            # From here to `reconcile` nothing awaits: a request sees either the old config or the new one.
            runtime.write(self.run_dir, changes.config)
            before = self.catalogue.entries_by_key
            self.catalogue.replace_with(fresh)
            self.in_force = changes.config
            self.left_out = {name: not_served[name] for name in found.left_out}
            configure(found.config)
            self.engine.reconcile(list(found.demands), before)
            await self.engine.deployed()
            return self._report(changes, not_served)

    async def _fetch(self, config: Config) -> dict[str, str]:
        """Download weights, build projects and environments; return the failed models with their reasons."""
        failed: dict[str, str] = {}
        for model in with_downloads(config.models):
            try:
                if runs_nowhere(model, self.hardware) or weights.is_prepared(self.home, model):
                    continue
                if not self.pull:
                    environments.require(self.home, model)
                    failed[model.name] = "its weights are not downloaded: run `appliance pull`"
                    continue
                await asyncio.to_thread(weights.prepare, self.home, model)
            except WeightsError as error:
                failed[model.name] = error.detail
        return failed

    async def _preload(self, config: Config) -> None:
        """Let the zygote import the modules of new kinds of models; new worker processes wait for this."""
        before = {model.kind for model in self.in_force.models}
        added = {model.kind for model in config.models} - before
        device = self.hardware.kind
        wanted = dict.fromkeys(name for kind in sorted(added) for name in preloaded_modules(kind, device))
        if wanted:
            await self.cluster.prepare(list(wanted))

    async def _new_catalogue(self, found: Servable) -> Catalogue:
        """Return the new catalogue, including changes made to the old catalogue during the reload."""
        while True:
            seen = self.catalogue.changes
            fresh = await catalogue_of(found, self.store)
            await self.builds.fill(fresh)
            await self.trainings.fill(fresh)
            if self.catalogue.changes == seen:
                return fresh

    def _report(self, changes: Changes, not_served: dict[str, str]) -> Report:
        report = Report(
            added=changes.added,
            removed=changes.removed,
            changed=changes.changed,
            settings=changes.settings,
            needs_restart=changes.needs_restart,
            not_served=not_served,
        )
        _log.info("%s is reloaded: %s", self.file, "; ".join(str(report).split("\n")))
        return report


async def catalogue_of(found: Servable, store: Store) -> Catalogue:
    """Return a catalogue of the servable models of models.yaml and of the models made through the API.

    Models that cannot be served are logged.
    """
    for name, why in found.left_out.items():
        _log.error("model %s is not served: %s", name, why, extra={"model": name})
    entries, seen = [], {}
    for _, entry in found.described:
        row = VersionRow(
            id=entry.version, model=entry.name, created_at=entry.created_at, document=entry.document
        )
        first_seen = (await store.record_version(row)).created_at
        await store.forget_versions(entry.name, entry.version)
        entries.append(msgspec.structs.replace(entry, created_at=first_seen))
        seen[entry.name] = min(version.created_at for version in await store.versions(entry.name))
    cards = [msgspec.structs.replace(card, created_at=seen[card.name]) for card, _ in found.described]
    models = Catalogue(cards, entries, found.config.collections)
    for model in await store.registry.models():
        if model.name in models.cards:
            _log.warning(
                "model %s is now in models.yaml: the model of the same name made through the API is hidden",
                model.name,
            )
        else:
            models.put(model)
    return models
