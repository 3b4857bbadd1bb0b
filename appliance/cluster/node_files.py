"""The files of predictions that run on another node.

Input files are sent to the node before their job, and output files are fetched before the event that names
them goes on. The events of one prediction keep their order. Predictions do not wait for files of others.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from appliance.cluster.base import NodeConnection
from appliance.cluster.node_spec import replaced, strings_in
from appliance.domain.errors import ApplianceError, NodeLost
from appliance.domain.file import OutputFile, output_files
from appliance.domain.prediction import Done, Emitted, Job, Output
from appliance.runners import adapters

_log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds to wait before a transfer is tried again. Meanwhile the node may be declared lost.
_DELAYS: Final = (0.5, 2.0, 10.0)
#: Seconds from the acknowledgement of a prediction to the deletion of its files on the node.
_DROP_DELAY: Final = 1.0
#: Acknowledged predictions of each model whose repeated events are still recognized. The replica repeats the
#: events of those whose acknowledgement it has not received.
_REMEMBERED: Final = 1000
#: File that lists the copies of weights that a prediction uses on its node. It is beside the input files.
_COPIES: Final = "copies.json"


class Folders(NamedTuple):
    """The folders with the files of predictions. Each of them has one folder for each prediction."""

    inputs: Path  # on this machine
    outputs: Path  # on this machine
    node_inputs: Path  # on the node
    node_outputs: Path  # on the node


class NodeFiles:
    """Transfers the files of the predictions of one model on a node, on the gateway's event loop."""

    def __init__(
        self,
        node: str,
        connection: NodeConnection,
        folders: Folders,
        lost: asyncio.Future[str],
        *,
        send: Callable[[Job], None],
        cancel: Callable[[str], None],
        deliver: Callable[[list[Emitted]], None],
        keep_weights: Callable[[], list[str]],
    ) -> None:
        """``send`` and ``cancel`` pass a job or a cancellation to the node, ``deliver`` events to the engine.

        ``lost`` is done once the node is lost. ``keep_weights`` returns the paths of copied weights that a
        copy of other weights must not delete.
        """
        self._node = node
        self._connection = connection
        self._folders = folders
        self._lost = lost
        self._send = send
        self._cancel = cancel
        self._deliver = deliver
        self._keep_weights = keep_weights
        self._weights: dict[str, list[str]] = {}  # by prediction: copies of weights that it uses
        self._sending: dict[str, tuple[Job, asyncio.Task[None]]] = {}  # by prediction: its files are sent
        self._on_node: dict[str, list[str]] = {}  # by prediction: its files and folders on the node
        #: By prediction: events that wait for a file, and the later events of the same prediction.
        self._waiting: dict[str, deque[Emitted]] = {}
        self._failed: dict[str, str] = {}  # by prediction: why its output is incomplete
        self._last: dict[str, tuple[int, int]] = {}  # by prediction: attempt and number of its last event
        self._acknowledged: deque[str] = deque()  # the last predictions whose end is stored
        self._discarded: set[str] = set()  # predictions of which only the end is delivered
        self._fetches: set[asyncio.Task[None]] = set()
        self._sends: set[asyncio.Task[None]] = set()
        self._drops: set[asyncio.Task[None]] = set()

    # -- jobs --------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Send a job once the node has its input files. Without files the job is sent at once."""
        job = msgspec.structs.replace(job, folder=self._folder_on_node(job))
        if job.folder:
            self._on_node.setdefault(job.id, []).append(job.folder)
        files = _files_of(job, self._folders.inputs)
        weights = _weights_of(job)
        if not files and not weights:
            self._send(job)
            return
        task = _spawn(self._send_with_files(job, files, weights), self._sends)
        self._sending[job.id] = job, task

    def cancel(self, id: str) -> None:
        """Cancel a prediction. One that was not sent yet ends at once."""
        sending = self._sending.pop(id, None)
        if sending is None:
            self._cancel(id)
            return
        job, task = sending
        task.cancel()
        self._deliver([Emitted(id, job.attempt, 1, Done("canceled"))])

    def acknowledged(self, id: str) -> None:
        """Delete the files that a prediction, whose end is stored, has on the node."""
        self._failed.pop(id, None)
        self._discarded.discard(id)
        self._acknowledged.append(id)
        if len(self._acknowledged) > _REMEMBERED:
            self._last.pop(self._acknowledged.popleft(), None)
        if self._weights.pop(id, None) is not None:
            _delete_copies(self._folders.inputs / id)
        self._on_node.pop(id, None)
        paths = self._all_on_node(id)
        asyncio.get_running_loop().call_later(_DROP_DELAY, self._drop, paths)

    async def _send_with_files(self, job: Job, files: list[str], weights: list[str]) -> None:
        kept = self._on_node.setdefault(job.id, [])
        paths: dict[str, str] = {}
        try:
            for file in files:
                paths[file] = await self._transferred(partial(self._connection.send_file, Path(file), job.id))
                kept.append(paths[file])
            if weights:
                copies = await self._transferred(partial(self._copy_weights, weights))
                self._weights[job.id] = list(copies.values())
                await asyncio.to_thread(_save_copies, self._folders.inputs / job.id, self._weights[job.id])
                paths |= copies
        except NodeLost:
            if self._lost.done():  # the reader of the events reports the loss
                return
            self._refuse(job, f"the connection to node {self._node} broke while input files were sent there")
        except Exception as error:  # noqa: BLE001  # after any error the prediction must end
            self._log_unexpected(job.id, error)
            self._refuse(job, f"its files could not be sent to node {self._node}: {_detail(error)}")
        else:
            if self._sending.pop(job.id, None) is not None:
                self._send(_with_paths(job, paths))

    async def _copy_weights(self, paths: list[str]) -> dict[str, str]:
        return await self._connection.copy_weights([Path(path) for path in paths], self._keep_weights())

    def used_weights(self) -> list[str]:
        """Return the paths of the copies of weights that unfinished predictions use."""
        return [path for paths in self._weights.values() for path in paths]

    def _refuse(self, job: Job, reason: str) -> None:
        if self._sending.pop(job.id, None) is not None:
            self._deliver([Emitted(job.id, job.attempt, 1, Done("failed", reason))])

    def _folder_on_node(self, job: Job) -> str:
        if not job.folder:
            return job.folder
        return str(self._folders.node_outputs / Path(job.folder).relative_to(self._folders.outputs))

    # -- events ------------------------------------------------------------------------------------------

    def skip(self, id: str, attempt: int, n: int) -> None:
        """Do not deliver events of an attempt up to number ``n``, because they are stored already."""
        self._last[id] = attempt, n

    def discard(self, id: str) -> None:
        """Deliver only the last event of a prediction, and fetch no files of it."""
        self._discarded.add(id)

    def receive(self, events: list[Emitted]) -> None:
        """Deliver events of the node, in order; those that name files once the files are here.

        Events that were received before are ignored: after each new connection the replica repeats them.
        """
        ready = []
        for emitted in events:
            position = emitted.attempt, emitted.n
            if position <= self._last.get(emitted.id, (0, 0)):
                continue
            self._last[emitted.id] = position
            if emitted.id in self._discarded and not isinstance(emitted.event, Done):
                continue
            if (waiting := self._waiting.get(emitted.id)) is not None:
                waiting.append(emitted)
            elif _has_files(emitted):
                self._waiting[emitted.id] = deque([emitted])
                _spawn(self._fetch(emitted.id), self._fetches)
            elif (passed := self._without_failed(emitted)) is not None:
                ready.append(passed)
        if ready:
            self._deliver(ready)

    async def events_delivered(self) -> None:
        """Return once all events that were received are delivered, or the node is lost."""
        while self._fetches and not self._lost.done():
            waited: set[asyncio.Future[Any]] = {*self._fetches, self._lost}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)

    def cancel_sends(self) -> None:
        """Send no more files and jobs, because the worker process has died."""
        self._sending.clear()
        for task in self._sends:
            task.cancel()

    def close(self) -> None:
        """Stop all transfers. The predictions, and their files on the node, stay for the next gateway."""
        for task in self._sends | self._fetches:
            task.cancel()

    def abandon(self) -> None:
        """Stop all transfers, and delete the files of unfinished predictions: their worker process is gone.

        The predictions may run again on this node, so only the files of the present attempts are deleted.
        """
        self.close()
        paths = [path for paths in self._on_node.values() for path in paths]
        self._on_node.clear()
        if paths:
            self._drop(paths)

    async def wait_for_deletions(self) -> None:
        """Return once all deletions that have begun are done, or the node is lost."""
        while self._drops and not self._lost.done():
            waited: set[asyncio.Future[Any]] = {*self._drops, self._lost}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)

    def adopt(self, predictions: Iterable[str]) -> None:
        """Note that predictions (ids) of a previous gateway have files and weights on the node."""
        for id in predictions:
            self._on_node[id] = self._all_on_node(id)
            if copies := _saved_copies(self._folders.inputs / id):
                self._weights[id] = copies

    def _all_on_node(self, id: str) -> list[str]:
        return [str(self._folders.node_inputs / id), str(self._folders.node_outputs / id)]

    async def _fetch(self, id: str) -> None:
        waiting = self._waiting[id]
        while waiting:
            emitted = waiting[0]
            if _has_files(emitted) and id not in self._failed:
                try:
                    await self._fetch_files(emitted)
                except NodeLost:
                    if self._lost.done():  # the reader of the events reports the loss
                        del self._waiting[id]
                        return
                    self._fail(
                        id, f"the connection to node {self._node} broke while output files were fetched"
                    )
                except Exception as error:  # noqa: BLE001  # after any error the prediction must end
                    self._log_unexpected(id, error)
                    self._fail(
                        id, f"its output files could not be fetched from node {self._node}: {_detail(error)}"
                    )
            waiting.popleft()
            if not waiting:  # before the delivery, in which the engine may acknowledge the prediction
                del self._waiting[id]
            if (passed := self._without_failed(emitted)) is not None:
                self._deliver([passed])

    def _log_unexpected(self, id: str, error: Exception) -> None:
        if not isinstance(error, ApplianceError | OSError):
            text = "files of prediction %s could not be copied from or to node %s"
            _log.error(text, id, self._node, exc_info=error, extra={"prediction": id})

    def _fail(self, id: str, reason: str) -> None:
        """Cancel a prediction on the node. Its end, which follows, will have ``reason``."""
        _log.error("prediction %s failed: %s", id, reason, extra={"prediction": id})
        self._failed[id] = reason
        self._cancel(id)

    def _without_failed(self, emitted: Emitted) -> Emitted | None:
        """Return the event as it is delivered: of a failed prediction only its end, with the reason."""
        reason = self._failed.get(emitted.id)
        if reason is None:
            return emitted
        if not isinstance(emitted.event, Done):
            return None
        del self._failed[emitted.id]
        return msgspec.structs.replace(emitted, event=Done("failed", reason))

    async def _fetch_files(self, emitted: Emitted) -> None:
        """Copy the output files of an event to this machine, and set their paths here.

        Raises:
            ApplianceError: a file is missing, damaged, or not in the prediction's folder.
            OSError: a file cannot be written.
        """
        top = self._folders.node_outputs / emitted.id
        for file in _output_files(emitted):
            path = PurePosixPath(file.path)
            if not path.is_relative_to(top) or ".." in path.parts:
                raise ApplianceError(f"{file.path} is not below {top}")
            target = self._folders.outputs / path.relative_to(self._folders.node_outputs)
            await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
            expected = file.size, file.sha256
            if await asyncio.to_thread(_digest, target) != expected:  # a previous gateway may have fetched it
                await asyncio.to_thread(target.unlink, missing_ok=True)  # or only a part of it
                await self._transferred(partial(self._connection.fetch_file, file.path, target))
                if await asyncio.to_thread(_digest, target) != expected:
                    raise ApplianceError(f"{file.name} was damaged on its way")
            file.path = str(target)

    async def _transferred(self, transfer: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ``transfer``, which is tried again while the connection breaks.

        Raises:
            NodeLost: the node is lost, or all attempts failed.
        """
        for delay in _DELAYS:
            try:
                return await transfer()
            except NodeLost as error:
                _log.warning("a transfer with node %s failed, trying again: %s", self._node, error.detail)
                if (await asyncio.wait({self._lost}, timeout=delay))[0]:
                    raise
        return await transfer()

    # -- tasks -------------------------------------------------------------------------------------------

    def _drop(self, paths: list[str]) -> None:
        if not self._lost.done():
            _spawn(self._drop_files(paths), self._drops)

    async def _drop_files(self, paths: list[str]) -> None:
        try:
            await self._connection.drop_files(paths)
        except ApplianceError as error:
            _log.warning("files of predictions could not be deleted on node %s: %s", self._node, error.detail)


def _spawn(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
    """Start a task, which is in ``tasks`` until it ends."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


def _output_files(emitted: Emitted) -> Iterator[OutputFile]:
    if isinstance(emitted.event, Output):
        yield from output_files(emitted.event.values)


def _has_files(emitted: Emitted) -> bool:
    return next(_output_files(emitted), None) is not None


def _files_of(job: Job, inputs: Path) -> list[str]:
    """Return the input files that this machine has fetched for the job."""
    start = f"{inputs / job.id}/"
    return [path for path in strings_in(job.input) if path.startswith(start) and ".." not in path.split("/")]


def _weights_of(job: Job) -> list[str]:
    """Return the weights that the job needs: a trained version, and adapters that the input names."""
    given = [job.adapter, *(job.input.get(name) for name in adapters.INPUTS)]
    return [path for path in given if isinstance(path, str) and path.startswith("/")]


def _with_paths(job: Job, paths: Mapping[str, str]) -> Job:
    adapter = job.adapter if job.adapter is None else paths[job.adapter]
    return msgspec.structs.replace(job, input=replaced(job.input, paths), adapter=adapter)


def _save_copies(folder: Path, copies: list[str]) -> None:
    """Let the next gateway know which copies of weights a prediction uses on its node."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _COPIES).write_bytes(msgspec.json.encode(copies))
    except OSError as error:  # the prediction can run
        text = (
            "the list of copied adapters of a prediction cannot be written to %s: %s: if the gateway "
            "restarts while the prediction runs, it may delete these copies"
        )
        _log.warning(text, folder, error)


def _saved_copies(folder: Path) -> list[str]:
    try:
        return msgspec.json.decode((folder / _COPIES).read_bytes(), type=list[str])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        text = (
            "the list of copied adapters of a prediction cannot be read from %s: %s: these copies may be "
            "deleted while the prediction runs"
        )
        _log.warning(text, folder, error)
        return []


def _delete_copies(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / _COPIES).unlink(missing_ok=True)
        folder.rmdir()  # unless input files are in it


def _digest(file: Path) -> tuple[int, str] | None:
    """Return the size and SHA-256 of a file; None if it does not exist."""
    if not file.exists():
        return None
    with file.open("rb") as content:
        return file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()


def _detail(error: Exception) -> str:
    return error.detail if isinstance(error, ApplianceError) else str(error)
