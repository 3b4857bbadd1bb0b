"""Adds, updates and removes models of models.yaml while the appliance runs.

Weights are downloaded first, in a process of their own. Then models.yaml is edited and reloaded. If the
reload fails, the file is put back. A gateway that starts continues the downloads of the gateway before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from appliance import config as configuration
from appliance.adding import Pending, pending
from appliance.adding.download_process import DownloadTask, Line
from appliance.config import Config, Report, includes
from appliance.config.edit import add_entry, change_entry, remove_entry
from appliance.config.edit_file import (
    Edited,
    check_writable,
    checksum_of,
    edit_file,
    put_back,
    with_line_ends_of,
)
from appliance.domain.errors import ApplianceError, ConfigError, Conflict, NotFound
from appliance.domain.prediction import new_id
from appliance.gateway.engine.reload import Reload
from appliance.machine.processes import kill_marked
from appliance.runners.child_environment import hub_secrets, without_secrets

_log = logging.getLogger(__name__)

#: Downloads that run at the same time; others wait.
DOWNLOADS_AT_ONCE: Final = 2
#: Environment variable with the id of the addition, in each process that downloads for it.
ADDITION_MARK: Final = "APPLIANCE_ADDITION"
_KEPT: Final = 50  # additions that have ended
_LINE: Final = 1024 * 1024  # bytes of a line that are kept
_SHOWN: Final = 1000  # characters of the last line in an error message
_PIPE_TIMEOUT: Final = 5.0  # seconds for the end of a killed process's output

Configure = Callable[[Config], None]
State = Literal["waiting", "downloading", "applying", "succeeded", "failed", "canceled"]


class Addition(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is being added or updated, or the result if that has ended."""

    pending: Pending
    state: State = "waiting"
    step: str = ""
    done: int = 0  # bytes of the step
    total: int | None = None  # bytes of the step; None if unknown
    problem: str | None = None
    report: Report | None = None
    ended_at: float | None = None  # Unix seconds

    @property
    def over(self) -> bool:
        return self.ended_at is not None


class Additions:
    """Runs additions on the gateway's event loop, and edits models.yaml for them, one edit at a time."""

    def __init__(self, home: Path, reload: Reload) -> None:
        self._home = home
        self._reload = reload
        self._known: dict[str, Addition] = {}  # by id, oldest first
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by id
        self._canceled: set[str] = set()
        self._slots = asyncio.Semaphore(DOWNLOADS_AT_ONCE)
        self._turn = asyncio.Lock()  # guards models.yaml
        self._changed = asyncio.Event()  # set, and replaced, when an addition changes

    @property
    def file(self) -> Path:
        return self._reload.file

    def resume(self, configure: Configure) -> None:
        """Continue the additions that an earlier gateway has left unfinished."""
        for each in pending.read_all(self._home):
            self._start(each, configure)

    async def start(
        self,
        action: Literal["add", "update"],
        entry: dict[str, Any],
        configure: Configure,
        *,
        force: bool = False,
        old_revision: str | None = None,
    ) -> Addition:
        """Start to download the weights of a model and to write its ``entry`` to models.yaml.

        ``configure`` is as for ``Reload.apply``. With ``force``, the entry stays although the model cannot be
        served. ``old_revision`` is that of the model before an update.

        Raises:
            Conflict: the model is being added or updated already, or models.yaml cannot be written.
        """
        try:
            await asyncio.to_thread(check_writable, self.file)
        except ConfigError as error:
            raise Conflict(error.detail) from error
        self._check_free(str(entry["name"]))
        given = Pending(
            id=new_id(),
            action=action,
            entry=entry,
            force=force,
            created_at=round(time.time(), 6),
            old_revision=old_revision,
        )
        self._known[given.id] = Addition(pending=given)  # from here on, no other addition of the model starts
        try:
            await asyncio.to_thread(pending.write, self._home, given)
        except BaseException:
            del self._known[given.id]
            raise
        return self._start(given, configure)

    def get(self, id: str) -> Addition:
        """Return an addition.

        Raises:
            NotFound: there is none with this id.
        """
        if id not in self._known:
            raise NotFound
        return self._known[id]

    def all(self) -> list[Addition]:
        """Return the additions that run and the last ones that have ended, newest first."""
        return list(reversed(self._known.values()))

    async def follow(self, id: str, idle: float) -> AsyncIterator[Addition | None]:
        """Yield an addition now and whenever it changes, until it is over; None after ``idle`` seconds.

        Raises:
            NotFound: there is none with this id.
        """
        last: Addition | None = None
        while True:
            changed, seen = self._changed, self.get(id)
            if seen is not last:
                yield seen
                last = seen
            if seen.over:
                return
            try:
                async with asyncio.timeout(idle):
                    await changed.wait()
            except TimeoutError:
                yield None

    async def cancel(self, id: str) -> Addition:
        """Cancel an addition, and return it once its download has stopped.

        One that has ended is returned unchanged. One that edits models.yaml ends first. What is downloaded
        stays on the disk: the next download of the model continues there.

        Raises:
            NotFound: there is none with this id.
        """
        addition = self.get(id)
        task = self._tasks.get(id)
        if task is None:
            return addition
        if addition.state in {"waiting", "downloading"}:
            self._canceled.add(id)
            task.cancel()
        await asyncio.wait([task])
        if not self.get(id).over:  # the task was cancelled before its first step
            await self._end(id, state="canceled")
        return self.get(id)

    async def remove(self, model: str, configure: Configure) -> Report:
        """Remove a model from models.yaml, and reload the file.

        Raises:
            Conflict: the model is being updated, or the reload failed.
            ConfigError: the file of the model cannot be changed.
        """
        self._check_free(model)
        async with self._turn:
            included = await self._included(model)
            file = str(included or self.file)
            return await self._edit(
                lambda text: remove_entry(text, model, file), configure, included=included
            )

    async def replace(self, text: str, checksum: str, configure: Configure, included: Path | None) -> Report:
        """Replace the text of models.yaml, or of an ``included`` file, and reload.

        ``checksum`` is that of the text that the edit began with. Line ends stay those of the file.

        Raises:
            Conflict: the file has another text now, or the reload failed.
            ConfigError: the file cannot be written, or the new text is not a valid config.
        """

        def edit(old: str) -> str:
            if checksum_of(old) != checksum:
                raise Conflict(
                    f"{(included or self.file).name} was changed since it was read: copy your changes, read "
                    "the file again, and make them there."
                )
            return with_line_ends_of(old, text)

        async with self._turn:
            await asyncio.to_thread(check_writable, included or self.file)
            return await self._edit(edit, configure, included=included)

    async def close(self) -> None:
        """Stop all downloads; the next gateway continues them."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_free(self, model: str) -> None:
        for each in self._known.values():
            if each.pending.model == model and not each.over:
                raise Conflict(
                    f"The model {model} is being changed by the addition {each.pending.id}: wait for its "
                    "end, or cancel it."
                )

    def _start(self, given: Pending, configure: Configure) -> Addition:
        addition = self._known[given.id] = Addition(pending=given)
        task = asyncio.get_running_loop().create_task(self._run(given, configure))
        self._tasks[given.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(given.id))
        return addition

    async def _run(self, given: Pending, configure: Configure) -> None:
        try:
            async with self._slots:
                self._change(given.id, state="downloading")
                await self._download(given)
            self._change(given.id, state="applying", step="", done=0, total=None)
            async with self._turn:
                report = await self._apply(given, configure)
        except asyncio.CancelledError:
            if given.id not in self._canceled:
                raise  # the gateway stops: the next one continues
            await self._end(given.id, state="canceled")
        except Exception as error:  # noqa: BLE001  # else the addition would never end
            problem = error.detail if isinstance(error, ApplianceError) else str(error)
            _log.error(
                "model %s cannot be %s: %s",
                given.model,
                "added" if given.action == "add" else "updated",
                problem,
                extra={"model": given.model},
            )
            await self._end(given.id, state="failed", problem=problem)
        else:
            await self._end(given.id, state="succeeded", report=report)

    async def _download(self, given: Pending) -> None:
        """Download in a separate process.

        Raises:
            ApplianceError: the download failed.
        """
        await asyncio.to_thread(kill_marked, ADDITION_MARK, given.id)  # of a gateway that was killed
        mark = f"{secrets.token_hex(8)} "  # output of a Cog project cannot imitate the progress
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance.adding.download_process", str(self._home), mark),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE,
            env={**without_secrets(), ADDITION_MARK: given.id},
            start_new_session=True,
        )
        line, last = Line(), ""
        try:
            assert process.stdin is not None, "stdin is a pipe"
            assert process.stdout is not None, "stdout is a pipe"
            process.stdin.write(msgspec.json.encode(DownloadTask(given, hub_secrets())))
            process.stdin.close()
            async for output in _lines(process.stdout):
                text = output.decode(errors="replace")
                if text.startswith(mark):
                    line = msgspec.json.decode(text.removeprefix(mark), type=Line)
                    self._change(given.id, step=line.step, done=line.done, total=line.total)
                else:
                    last = text.strip()[-_SHOWN:] or last
            code = await process.wait()
        finally:
            await asyncio.shield(_clear(given.id, process))
        if not line.ended:
            raise ApplianceError(
                f"the download process exited with code {code} before it finished: {last or 'no output'}"
            )
        if line.problem is not None:
            raise ApplianceError(line.problem)

    async def _apply(self, given: Pending, configure: Configure) -> Report:
        """Write the entry to models.yaml and reload.

        Raises:
            ConfigError: models.yaml cannot be changed.
            Conflict: the reload failed, or the model cannot be served.
        """
        included = await self._included(given.model) if given.action == "update" else None
        name, file = given.model, str(included or self.file)

        def edit(text: str) -> str:
            if given.action == "update":
                return _with_revision(text, given, given.entry["source"]["revision"], file)
            return text if self._is_written(given) else add_entry(text, given.entry, file)

        def undo(text: str) -> str:
            """Undo the edit of a gateway that was killed after it."""
            if given.action == "add":
                return remove_entry(text, name, file)
            return (
                text if given.old_revision is None else _with_revision(text, given, given.old_revision, file)
            )

        def problem(report: Report) -> str | None:
            return None if given.force else report.not_served.get(name)

        repeated = given.applying
        if not repeated:
            await asyncio.to_thread(pending.write, self._home, msgspec.structs.replace(given, applying=True))
        return await self._edit(edit, configure, problem, undo if repeated else None, included)

    async def _included(self, model: str) -> Path | None:
        """Return the file of models.d that has a model; None for models.yaml."""
        return await asyncio.to_thread(includes.find_model, self.file, model)

    def _is_written(self, given: Pending) -> bool:
        """Return whether models.yaml has the entry already, because a gateway was killed before its end."""
        models = configuration.load(self.file).models
        return any(model.name == given.model and model.source == given.config().source for model in models)

    async def _edit(
        self,
        edit: Callable[[str], str],
        configure: Configure,
        problem: Callable[[Report], str | None] = lambda _: None,
        undo: Callable[[str], str] | None = None,
        included: Path | None = None,
    ) -> Report:
        """Edit models.yaml, or an ``included`` file, and reload it.

        If the reload fails or ``problem`` returns one, the file is put back. ``undo`` returns the text before
        an edit that an earlier gateway made.

        Raises:
            ConfigError: the file cannot be changed, or the new text is not valid.
            Conflict: why the reload failed, and whether the file is as before.
        """
        edited = await asyncio.to_thread(edit_file, self.file, edit, included)
        if undo is not None and edited.old == edited.new:
            edited = edited._replace(old=undo(edited.new))
        try:
            report = await self._reload.apply(configure)
        except Exception as error:
            reason = error.detail if isinstance(error, ApplianceError) else str(error)
            raise await self._undone(edited, configure, reason, included) from error
        if not_served := problem(report):
            raise await self._undone(edited, configure, not_served, included)
        return report

    async def _undone(
        self, edited: Edited, configure: Configure, reason: str, included: Path | None
    ) -> Conflict:
        """Put the edited file back, reload, and return the error to raise."""
        file = (included or self.file).name
        if edited.old == edited.new:  # an addition of an older version, whose edit is not known
            return Conflict(f"{reason}. {file} has the change since before a restart: correct it.")
        try:
            if not await asyncio.to_thread(put_back, self.file, edited, included):
                return Conflict(f"{reason}. {file} was edited meanwhile and keeps the change: correct it.")
            await self._reload.apply(configure)
        except Exception as error:  # noqa: BLE001  # any error of the reload; the caller raises what is returned
            _log.error("%s could not be put back after a failed change: %s: correct the file", file, error)
            return Conflict(f"{reason}. {file} could not be put back either: {error}")
        return Conflict(f"{reason}. {file} is as before.")

    def _change(self, id: str, **changes: Any) -> None:
        self._known[id] = msgspec.structs.replace(self._known[id], **changes)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _end(self, id: str, *, state: State, **changes: Any) -> None:
        self._canceled.discard(id)
        await asyncio.to_thread(pending.forget, self._home, id)
        self._change(id, state=state, ended_at=round(time.time(), 6), **changes)
        ended = [each for each in self._known.values() if each.over]
        for each in ended[:-_KEPT]:
            del self._known[each.pending.id]


def _with_revision(text: str, given: Pending, revision: str, file: str) -> str:
    return change_entry(text, given.model, ("source", "revision"), revision, file)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of ``stream``; of lines that are longer than its limit, only the end."""
    while True:
        try:
            yield await stream.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            await stream.readexactly(error.consumed)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                yield error.partial
            return


async def _clear(id: str, process: asyncio.subprocess.Process) -> None:
    """Kill all processes of an addition, and wait for the end of ``process``."""
    await asyncio.to_thread(kill_marked, ADDITION_MARK, id)
    with contextlib.suppress(TimeoutError):  # a process that has hidden its mark may hold the pipe open
        async with asyncio.timeout(_PIPE_TIMEOUT):
            await process.communicate()
