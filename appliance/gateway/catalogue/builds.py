"""Builds pushed Cog projects in separate processes; each build becomes a version of its model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from appliance import weights
from appliance.builds import project
from appliance.config import BuiltCogOptions
from appliance.domain.errors import (
    BucketUnavailable,
    ContentMissing,
    DiskFull,
    NotFound,
    OutputRemoved,
    StoreError,
    WeightsError,
)
from appliance.domain.file import File
from appliance.domain.model import Build, Project
from appliance.domain.prediction import new_id
from appliance.gateway.catalogue.catalogue import Catalogue, ServedVersion, describe_pushed, trainer_of
from appliance.gateway.catalogue.demands import demand, training_demand
from appliance.gateway.files.file_store import FileStore
from appliance.machine.hardware import Hardware, runs_nowhere
from appliance.machine.processes import kill_marked
from appliance.runners.child_environment import without_secrets
from appliance.scheduler import Scheduler
from appliance.store import Store, VersionRow

_log = logging.getLogger(__name__)

_LOGS: Final = 200_000  # characters of a build's log that are kept, from its end
_LINE: Final = 1024 * 1024  # bytes
_CANCELED: Final = "it was canceled"
#: Builds that run at the same time; other builds wait. One build can use all of a small machine.
BUILDS_AT_ONCE: Final = 2
#: Seconds that a build may take after it has started.
BUILD_TIMEOUT: Final = 3600.0
_PIPE_TIMEOUT: Final = 5.0  # seconds for the end of a killed build's output
#: Environment variable with the id of the build, in each process that the build starts.
BUILD_MARK: Final = "APPLIANCE_BUILD"


class ProjectBuilds:
    """Runs up to ``BUILDS_AT_ONCE`` builds at the same time, on the gateway's event loop."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: Store,
        files: FileStore,
        scheduler: Scheduler,
        *,
        home: Path,
        hardware: Hardware,
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._files = files
        self._scheduler = scheduler
        self._home = home
        self._hardware = hardware
        self.left_out: dict[str, str] = {}  # version that cannot be served -> reason
        self._under_way: dict[str, Build] = {}  # oldest first
        self._slots = asyncio.Semaphore(BUILDS_AT_ONCE)
        self._changing = asyncio.Lock()  # guards the versions and their folders
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by the id of their build
        self._canceled: set[str] = set()
        self._accepting: set[str] = set()  # builds that can no longer be cancelled

    async def load(self) -> None:
        """Add the versions that were pushed earlier, and mark interrupted builds as failed."""
        await asyncio.to_thread(project.sweep, self._home)
        await self.fill(self._catalogue)
        for build in await self._store.registry.unfinished_builds():
            self._under_way[build.id] = build
            why = "the appliance stopped during the build; push the project again"
            await self._end(build.id, status="failed", error=why)
            del self._under_way[build.id]

    async def fill(self, catalogue: Catalogue) -> None:
        """Add the versions that were pushed earlier to ``catalogue``."""
        left_out = {}
        for pushed in await self._store.registry.projects():
            try:
                with weights.as_weights_errors(pushed.model):
                    self._serve(pushed, catalogue)
            except WeightsError as error:
                _log.error(
                    "version %s of model %s is not served: %s", pushed.version, pushed.model, error.detail
                )
                left_out[f"{pushed.model}@{pushed.version[:16]}"] = error.detail
        self.left_out = left_out

    async def start(self, model: str, source: File, memory: int | None) -> Build:
        """Start to build the archive ``source`` into a version of ``model``; return the stored build."""
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
        self._tasks[build.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(build.id))
        return build

    def under_way(self, owner: str) -> list[Build]:
        """Return the owner's unfinished builds, oldest first."""
        return [build for build in self._under_way.values() if build.owner == owner]

    async def cancel(self, id: str, owner: str) -> Build:
        """Cancel a build and return its stored record; a finished build is returned unchanged.

        Raises:
            NotFound: there is no such build, or it has another owner.
        """
        await self.get(id, owner)
        task = self._tasks.get(id)
        if task is not None:
            if id not in self._accepting and not self._under_way[id].over:
                self._canceled.add(id)
                task.cancel()
            await asyncio.wait([task])
            if id in self._under_way:  # the task was cancelled before its first step
                self._canceled.discard(id)
                await self._end(id, status="canceled", error=_CANCELED)
                self._under_way.pop(id, None)
        return await self.get(id, owner)

    async def get(self, id: str, owner: str) -> Build:
        """Return the current record of a build.

        Raises:
            NotFound: there is no such build, or it has another owner.
        """
        build = self._under_way.get(id) or await self._store.registry.build(id)
        if build is None or build.owner != owner:
            raise NotFound
        return build

    async def remove(self, entry: ServedVersion) -> None:
        """Delete the build folder of a deleted version, unless another version uses it."""
        build = _build_of(entry)
        async with self._changing:
            if build is not None and build not in map(_build_of, self._catalogue.entries):
                await asyncio.to_thread(shutil.rmtree, build, ignore_errors=True)

    async def close(self) -> None:
        """Stop all builds; the next start marks them as failed."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, build: Build, archive: Path) -> None:
        try:
            version = await self._new_version(build, archive)
        except asyncio.CancelledError:
            if build.id not in self._canceled:
                raise  # the appliance stops: the next start marks the build as failed
            await self._end(build.id, status="canceled", error=_CANCELED)
        except WeightsError as error:
            await self._end(build.id, status="failed", error=error.detail)
        except (StoreError, OSError) as error:
            _log.error("build %s of model %s failed: %s", build.id, build.model, error)
            full = DiskFull.is_cause_of(error)
            reason = DiskFull().detail if full else f"the version could not be written or stored: {error}"
            await self._end(build.id, status="failed", error=reason)
        else:
            _log.info("build %s created version %s of model %s", build.id, version, build.model)
            await self._end(build.id, status="succeeded", version=version)
        finally:
            self._under_way.pop(build.id, None)
            self._canceled.discard(build.id)
            self._accepting.discard(build.id)

    async def _new_version(self, build: Build, archive: Path) -> str:
        """Build a project and return the id of the new version.

        Raises:
            WeightsError: the build failed or timed out.
            StoreError: the version cannot be stored.
            OSError: files of the version cannot be written.
        """
        if self._slots.locked():
            self._log_line(build.id, f"{project.STEP}waiting: {BUILDS_AT_ONCE} other builds are under way\n")
        async with self._slots:
            self._change(build.id, status="processing")
            await self._store.registry.put_build(self._under_way[build.id])
            while True:
                try:
                    async with asyncio.timeout(BUILD_TIMEOUT):
                        folder = await self._build_folder(build, archive)
                except TimeoutError as error:
                    raise WeightsError(
                        f"the build took longer than {BUILD_TIMEOUT:g} s and was stopped"
                    ) from error
                async with self._changing:
                    if folder.exists():  # otherwise a version with this content was deleted meanwhile
                        self._accepting.add(build.id)
                        with weights.as_weights_errors(build.model):
                            return await self._accept(build, folder)

    async def _build_folder(self, build: Build, archive: Path) -> Path:
        """Build in a separate process; return the folder of the build.

        Raises:
            WeightsError: the build failed.
        """
        with tempfile.TemporaryDirectory(prefix="archive-") as folder:
            copied = Path(folder) / "archive"
            if not self._files.local_only:
                await self._copy_archive(archive, copied)
                archive = copied
            return await self._built(build, archive)

    async def _copy_archive(self, archive: Path, target: Path) -> None:
        """Copy an upload out of the encrypted files or the bucket.

        Raises:
            WeightsError: the upload was deleted, or the bucket does not answer.
        """
        try:
            await self._files.copy_content(archive, target)
        except (BucketUnavailable, ContentMissing, OutputRemoved) as error:
            raise WeightsError(f"the uploaded project cannot be read: {error.detail}") from error

    async def _built(self, build: Build, archive: Path) -> Path:
        mark = f"{secrets.token_hex(8)} "  # output of the project cannot imitate the result line
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance.builds.build_project"),
            *(str(self._home), str(archive), build.model, mark),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE,
            env={**without_secrets(), BUILD_MARK: build.id},
            start_new_session=True,
        )
        result = ""
        try:
            assert process.stdout is not None, "stdout is a pipe"
            async for line in process.stdout:
                text = line.decode(errors="replace")
                if text.startswith(mark):
                    result = text.removeprefix(mark)
                else:
                    self._log_line(build.id, text)
            code = await process.wait()
        except ValueError as error:
            raise WeightsError("the build process printed a line that is too long") from error
        finally:
            await asyncio.shield(_clear(self._home, build.id, process))
        try:
            outcome: dict[str, Any] = json.loads(result)
            if "error" in outcome:
                raise WeightsError(outcome["error"])
            return Path(outcome["build"])
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"the build process exited with code {code} before it finished; see the log of the build"
            ) from error

    def _log_line(self, id: str, line: str) -> None:
        logs = (self._under_way[id].logs + line)[-_LOGS:]
        step = line.removeprefix(project.STEP).strip() if line.startswith(project.STEP) else None
        self._change(id, logs=logs, **({} if step is None else {"step": step}))

    def _change(self, id: str, **changes: Any) -> None:
        self._under_way[id] = msgspec.structs.replace(self._under_way[id], **changes)

    async def _accept(self, build: Build, folder: Path) -> str:
        """Add the build as a version, unless this version exists; return the version id.

        Raises:
            WeightsError: the model was deleted during the build.
        """
        if build.model not in self._catalogue.cards:
            raise WeightsError(f"the model {build.model} was deleted during the build")
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
            row = VersionRow(
                id=entry.version, model=build.model, created_at=entry.created_at, document=entry.document
            )
            await self._store.record_version(row)
            self._serve(pushed, self._catalogue)
        return entry.version

    def _serve(self, pushed: Project, catalogue: Catalogue) -> None:
        if pushed.model not in catalogue.cards:
            raise WeightsError("the model was deleted")
        folder = project.root(self._home) / pushed.build
        config, revision = project.pushed(pushed.model, folder, pushed.memory)
        entry = describe_pushed(config, revision, pushed.created_at)
        if (reason := runs_nowhere(entry.model, self._hardware)) is not None:
            raise WeightsError(reason)
        demands = [demand(entry.model, self._home, self._hardware)]
        if trainer_of(entry) is not None:
            demands.append(training_demand(entry.model, self._home, self._hardware))
        for each in demands:
            self._scheduler.add(each)
        catalogue.add_pushed(entry)

    async def _end(
        self, id: str, *, status: str, version: str | None = None, error: str | None = None
    ) -> None:
        now = round(time.time(), 6)
        self._change(id, status=status, step=None, version=version, error=error, completed_at=now)
        try:
            await self._store.registry.put_build(self._under_way[id])
        except StoreError as problem:
            _log.error(
                "the result of build %s is not stored, the next start will mark the build as failed: %s",
                id,
                problem,
            )


def _build_of(entry: ServedVersion) -> str | None:
    """Return the name of the build folder of a pushed version; None if the version is not a Cog project."""
    options = entry.model.options
    return options.build if isinstance(options, BuiltCogOptions) else None


async def _clear(home: Path, id: str, process: asyncio.subprocess.Process) -> None:
    """Kill all processes of a build, wait for the end of ``process``, and remove the unfinished files."""
    await asyncio.to_thread(kill_marked, BUILD_MARK, id)
    with contextlib.suppress(TimeoutError):  # a process that has hidden its mark may hold the pipe open
        async with asyncio.timeout(_PIPE_TIMEOUT):
            await process.communicate()
    await asyncio.to_thread(project.sweep, home)
