"""Projects that are pushed while the appliance runs: built in a process of their own, then made versions."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance import weights
from appliance.catalogue import Catalogue, Entry, describe_pushed, trainer_of
from appliance.config import BuiltCogOptions
from appliance.errors import DiskFull, NotFound, StoreError, WeightsError
from appliance.file import File
from appliance.files import Files
from appliance.hardware import Device
from appliance.model import Build, Project
from appliance.placement import demand, training_demand
from appliance.prediction import new_id
from appliance.scheduler import Scheduler
from appliance.store import Store, VersionRow
from appliance.weights import project

_log = logging.getLogger(__name__)

_LOGS: Final = 200_000  # characters of a build's log that are kept, the last ones
_LINE: Final = 1024 * 1024  # bytes


class Pushes:
    """Lives on the gateway's loop. One build at a time: each takes all of a small machine."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: Store,
        files: Files,
        scheduler: Scheduler,
        *,
        home: Path,
        devices: tuple[Device, ...],
    ) -> None:
        """New versions go into ``catalogue``, ``store`` and ``scheduler``; builds are below ``home``."""
        self._catalogue = catalogue
        self._store = store
        self._files = files
        self._scheduler = scheduler
        self._home = home
        self._devices = devices
        self.left_out: dict[str, str] = {}  # versions that cannot be served, and why
        self._under_way: dict[str, Build] = {}
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Make the versions that were pushed before known; builds that were cut off have failed."""
        await asyncio.to_thread(project.sweep, self._home)
        await self.fill(self._catalogue)
        for build in await self._store.registry.unfinished_builds():
            await self._end(build, error="the appliance was stopped while it was built; push it again")

    async def fill(self, catalogue: Catalogue) -> None:
        """Make the versions that were pushed before known to ``catalogue``."""
        left_out = {}
        for pushed in await self._store.registry.projects():
            try:
                with weights.faults_of(pushed.model):
                    self._serve(pushed, catalogue)
            except WeightsError as error:
                _log.error("version %s of %s is not served: %s", pushed.version, pushed.model, error.detail)
                left_out[f"{pushed.model}@{pushed.version[:16]}"] = error.detail
        self.left_out = left_out

    async def start(self, model: str, source: File, memory: int | None) -> Build:
        """Have the project in the archive ``source`` become a version of ``model``; that wish is stored."""
        build = Build(
            id=new_id(),
            model=model,
            owner=source.owner,
            source=source.id,
            memory=memory,
            created_at=round(time.time(), 6),
        )
        await self._store.registry.put_build(build)
        self._under_way[build.id] = build
        task = asyncio.get_running_loop().create_task(self._run(build, self._files.path(source)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return build

    async def get(self, id: str, owner: str) -> Build:
        """A build as it is now.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        build = self._under_way.get(id) or await self._store.registry.build(id)
        if build is None or build.owner != owner:
            raise NotFound
        return build

    async def remove(self, entry: Entry) -> None:
        """A pushed version is no more: its build goes too, if no other version is of it."""
        build = _build_of(entry)
        async with self._turn:  # one that is about to begin may count on it
            if build is not None and build not in map(_build_of, self._catalogue.entries):
                await asyncio.to_thread(shutil.rmtree, build, ignore_errors=True)

    async def close(self) -> None:
        """End what is being built."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, build: Build, archive: Path) -> None:
        async with self._turn:
            try:
                self._under_way[build.id] = build = _with(build, status="processing")
                await self._store.registry.put_build(build)
                folder = await self._made(build, archive)
                version = await self._accept(build, folder)
            except WeightsError as error:
                await self._end(self._under_way[build.id], error=error.detail)
            except (StoreError, OSError) as error:
                _log.error("build %s of %s is lost: %s", build.id, build.model, error)
                full = DiskFull.caused(error)
                reason = DiskFull().detail if full else f"it could not be made or stored: {error}"
                await self._end(self._under_way[build.id], error=reason)
            else:
                _log.info("build %s made version %s of %s", build.id, version, build.model)
                await self._end(self._under_way[build.id], version=version)
            finally:
                self._under_way.pop(build.id, None)

    async def _made(self, build: Build, archive: Path) -> Path:
        """Have it built; gives the folder.

        Raises:
            WeightsError: it cannot be.
        """
        mark = f"{secrets.token_hex(8)} "  # what the project itself prints cannot be taken for the end
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance.weights.building"),
            *(str(self._home), str(archive), build.model, mark),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE,
            start_new_session=True,
        )
        end = ""
        try:
            assert process.stdout is not None, "it was started with a pipe"
            async for line in process.stdout:
                text = line.decode(errors="replace")
                if text.startswith(mark):
                    end = text.removeprefix(mark)
                else:
                    self._say(build.id, text)
            code = await process.wait()
        except ValueError as error:
            raise WeightsError("the build wrote a line that is too long") from error
        finally:
            with contextlib.suppress(ProcessLookupError):  # with all that it has started
                os.killpg(process.pid, signal.SIGKILL)
        try:
            told: dict[str, Any] = json.loads(end)
            if "error" in told:
                raise WeightsError(told["error"])
            return Path(told["build"])
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"the build ended with code {code} in the middle; its log says more"
            ) from error

    def _say(self, id: str, line: str) -> None:
        build = self._under_way[id]
        self._under_way[id] = _with(build, logs=(build.logs + line)[-_LOGS:])

    async def _accept(self, build: Build, folder: Path) -> str:
        """The build is a version from now on; one that is known already stays as it is.

        Raises:
            WeightsError: its model is gone.
        """
        if build.model not in self._catalogue.cards:
            raise WeightsError(f"the model {build.model} was deleted meanwhile")
        config, revision = project.pushed(build.model, folder, build.memory)
        entry = describe_pushed(config, revision, round(time.time(), 6))
        pushed = Project(
            version=entry.version,
            model=build.model,
            build=folder.name,
            created_at=entry.created_at,
            memory=build.memory,
        )
        if all(each.version != entry.version for each in self._catalogue.served(build.model)):
            await self._store.registry.add_project(pushed)
            await self._store.record_version(
                VersionRow(
                    id=entry.version,
                    model=build.model,
                    created_at=entry.created_at,
                    document=entry.document,
                )
            )
            self._serve(pushed, self._catalogue)
        return entry.version

    def _serve(self, pushed: Project, catalogue: Catalogue) -> None:
        if pushed.model not in catalogue.cards:
            raise WeightsError("its model is gone")
        folder = project.root(self._home) / pushed.build
        config, revision = project.pushed(pushed.model, folder, pushed.memory)
        entry = describe_pushed(config, revision, pushed.created_at)
        demands = [demand(entry.model, self._home, self._devices)]
        if trainer_of(entry) is not None:
            demands.append(training_demand(entry.model, self._home))
        for each in demands:
            self._scheduler.add(each)
        catalogue.add_pushed(entry)

    async def _end(self, build: Build, *, version: str | None = None, error: str | None = None) -> None:
        ended = _with(
            build,
            status="succeeded" if error is None else "failed",
            version=version,
            error=error,
            completed_at=round(time.time(), 6),
        )
        try:
            await self._store.registry.put_build(ended)
        except StoreError as problem:  # the next start says that it was cut off
            _log.error("the end of build %s could not be stored: %s", build.id, problem)


def _build_of(entry: Entry) -> str | None:
    """The folder of its build, if it is a project."""
    options = entry.model.options
    return options.build if isinstance(options, BuiltCogOptions) else None


def _with(build: Build, **changes: Any) -> Build:
    return msgspec.structs.replace(build, **changes)
