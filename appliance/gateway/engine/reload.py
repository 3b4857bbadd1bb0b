"""An edited models.yaml, applied to the appliance while it runs: only what it changes is touched."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from appliance import config as configuration
from appliance import weights
from appliance.cluster.base import Cluster
from appliance.config import Changes, Config, Report, compare, runtime
from appliance.domain.errors import WeightsError
from appliance.gateway.catalogue.builds import ProjectBuilds
from appliance.gateway.catalogue.catalogue import Catalogue
from appliance.gateway.catalogue.servable import Servable, servable
from appliance.gateway.catalogue.trainings import Trainings
from appliance.gateway.engine import Engine
from appliance.machine import Device
from appliance.runners import preloaded_modules
from appliance.store import Store, VersionRow

_log = logging.getLogger(__name__)


class Reload:
    """Lives on the gateway's loop; one reload at a time."""

    def __init__(
        self,
        *,
        file: Path,
        in_force: Config,
        home: Path,
        run_dir: Path,
        devices: tuple[Device, ...],
        catalogue: Catalogue,
        store: Store,
        cluster: Cluster,
        engine: Engine,
        builds: ProjectBuilds,
        trainings: Trainings,
        left_out: dict[str, str],
        pull: bool,
    ) -> None:
        """``file`` is models.yaml, ``in_force`` what it said last; ``home`` is the data folder.

        ``run_dir`` gets the config in effect, for gateways that start later. ``left_out`` maps models that
        could not be served at the start to the reasons. Without ``pull`` no weights are downloaded.
        """
        self.left_out = left_out  # models of the config in effect
        self._file = file
        self._in_force = in_force
        self._home = home
        self._run_dir = run_dir
        self._devices = devices
        self._catalogue = catalogue
        self._store = store
        self._cluster = cluster
        self._engine = engine
        self._builds = builds
        self._trainings = trainings
        self._pull = pull
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Report]] = set()

    async def apply(self, configure: Callable[[Config], None]) -> Report:
        """Read the file and do what it changes; returns once that is in effect.

        ``configure`` hands the new config to what is not a model. Weights that are missing are fetched first,
        and Cog projects built. A caller that goes away does not stop it.

        Raises:
            ConfigError: the file is wrong; nothing has changed.
        """
        task = asyncio.get_running_loop().create_task(self._apply(configure))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what has not been put in force yet."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _apply(self, configure: Callable[[Config], None]) -> Report:
        async with self._turn:
            edited = await asyncio.to_thread(configuration.load, self._file)
            changes = compare(self._in_force, edited)
            missing = await self._fetch(changes.config)
            found = await asyncio.to_thread(servable, changes.config, self._home, self._devices, time.time())
            not_served = found.left_out | missing
            await self._prepare(found.config)
            fresh = await self._models(found)
            # From here to `reconcile` nothing awaits: requests see what was before, or what is now.
            runtime.write(self._run_dir, changes.config)
            before = self._catalogue.hosting
            self._catalogue.replace_with(fresh)
            self._in_force = changes.config
            self.left_out = {name: not_served[name] for name in found.left_out}
            configure(found.config)
            self._engine.reconcile(list(found.demands), before)
            await self._engine.deployed()
            return self._told(changes, not_served)

    async def _fetch(self, config: Config) -> dict[str, str]:
        """Make weights and projects present; gives the models that cannot be had, and why."""
        failed: dict[str, str] = {}
        for model in config.models:
            try:
                if model.source is None or weights.present(self._home, model):
                    continue
                if not self._pull:
                    failed[model.name] = "its weights are not here: run `appliance pull`"
                    continue
                await asyncio.to_thread(weights.pull, self._home, model)
            except WeightsError as error:
                failed[model.name] = error.detail
        return failed

    async def _prepare(self, config: Config) -> None:
        """Have the zygote import what kinds need that were not there before; hosts wait for it."""
        before = {model.kind for model in self._in_force.models}
        added = {model.kind for model in config.models} - before
        device = self._devices[0].kind
        wanted = dict.fromkeys(name for kind in sorted(added) for name in preloaded_modules(kind, device))
        if wanted:
            await self._cluster.prepare(list(wanted))

    async def _models(self, found: Servable) -> Catalogue:
        """Return the catalogue to serve from now on, including changes that are made meanwhile."""
        while True:
            seen = self._catalogue.changes
            fresh = await catalogue_of(found, self._store)
            await self._builds.fill(fresh)
            await self._trainings.fill(fresh)
            if self._catalogue.changes == seen:
                return fresh

    def _told(self, changes: Changes, not_served: dict[str, str]) -> Report:
        report = Report(
            added=changes.added,
            removed=changes.removed,
            changed=changes.changed,
            settings=changes.settings,
            needs_restart=changes.needs_restart,
            not_served=not_served,
        )
        _log.info("%s is reloaded: %s", self._file, "; ".join(str(report).split("\n")))
        return report


async def catalogue_of(found: Servable, store: Store) -> Catalogue:
    """Catalogue of the models that can be served, with creation times, and of models made through the API.

    The log gets those that cannot be.
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
            _log.warning("models.yaml now has %s: the model made through the API is hidden", model.name)
        else:
            models.put(model)
    return models
