"""The unfinished predictions, and every change of a status.

Only this module starts, re-queues and ends predictions. The store refuses a write whose status does not
follow from the stored status. Clients see a new status once it is stored. No method awaits between reading a
prediction's state and changing it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from appliance.domain.errors import PredictionFailed, StoreError, UnstorableValue
from appliance.domain.prediction import Done, Emitted, Prediction, Status
from appliance.gateway.catalogue.catalogue import ServedVersion
from appliance.gateway.engine import records
from appliance.gateway.engine.active import ActivePrediction, Unwritten, fetched_input
from appliance.gateway.engine.dependencies import Dependencies
from appliance.gateway.engine.jobs import job_of, with_stored_files
from appliance.gateway.engine.loads import Loads
from appliance.gateway.engine.memory_profiles import OutOfMemoryAdvice
from appliance.gateway.engine.tasks import Tasks
from appliance.scheduler import Owner, Start

_log = logging.getLogger(__name__)

#: Seconds by which the first write of a prediction is delayed if the caller waits for its end. A shorter
#: prediction then needs one commit instead of two. If the gateway dies, the caller gets no response.
_WRITE_DELAY: Final = 0.02

OUTDATED: Final = (
    "model {} was changed or removed in models.yaml after the request: send the prediction again"
)
INTERRUPTED: Final = "Prediction interrupted; please retry (code: PA)"


class Predictions:
    """All unfinished predictions."""

    def __init__(
        self,
        dependencies: Dependencies,
        tasks: Tasks,
        loads: Loads,
        *,
        decide: Callable[[], None],
        decide_after_end: Callable[[], None],
        kill_worker: Callable[[str, str], None],
    ) -> None:
        """Create an empty collection; ``decide_after_end`` is ``decide`` after a run has ended.

        ``decide`` carries out the scheduler's decisions. ``kill_worker`` takes a model and the reason.
        """
        self._dependencies = dependencies
        self._catalogue = dependencies.catalogue
        self._store = dependencies.store
        self._cluster = dependencies.cluster
        self._scheduler = dependencies.scheduler
        self._tasks = tasks
        self._loads = loads
        self._decide = decide
        self._decide_after_end = decide_after_end
        self._kill_worker = kill_worker
        self.active: dict[str, ActivePrediction] = {}  # by id
        self._by_stream_token: dict[str, ActivePrediction] = {}
        #: By id of the parent, then by id of the child.
        self._children: dict[str, dict[str, ActivePrediction]] = {}
        #: By id and attempt: canceled predictions that a worker process has not stopped yet.
        self._leaving: dict[tuple[str, int], asyncio.TimerHandle] = {}

    def children_of(self, id: str) -> list[ActivePrediction]:
        return list(self._children.get(id, {}).values())

    def by_stream_token(self, token: str) -> Prediction | None:
        """Return the record of the unfinished prediction whose stream URL has this token."""
        active = self._by_stream_token.get(token)
        return None if active is None else active.prediction

    def add(
        self, prediction: Prediction, entry: ServedVersion, validated: dict[str, Any]
    ) -> ActivePrediction:
        """Add an accepted prediction. The caller calls ``enqueue`` or ``resume`` next."""
        active = ActivePrediction(prediction, entry, validated)
        self.active[active.id] = self._by_stream_token[prediction.stream_token] = active
        if prediction.parent is not None:
            self._children.setdefault(prediction.parent, {})[active.id] = active
        self._dependencies.budgets.add(prediction)
        self._start_deadline(active)
        return active

    def enqueue(self, active: ActivePrediction) -> None:
        """Queue a new prediction, and begin to fetch its input files."""
        self._fetch(active)
        self._queue(active)

    def resume(self, active: ActivePrediction, *, held: bool) -> None:
        """Continue a run of an earlier gateway; with ``held`` a worker process still has the prediction."""
        active.claimed = True
        if not held:
            self.retry_or_fail(active, "the appliance was stopped during the run")
            return
        active.submitted = active.attempt
        self._scheduler.resumed(active.id, active.entry.runs_on, self._parent(active))
        self._start_run_timeout(active)

    def start_held(self, active: ActivePrediction, devices: tuple[str, ...]) -> None:
        """Start a prediction on the instance to which an earlier gateway sent it, so that it runs once."""
        self._scheduler.resumed(active.id, active.entry.runs_on, self._parent(active))
        self.start(Start(active.id, active.entry.runs_on, devices))

    def forget(self, active: ActivePrediction) -> None:
        """Drop a prediction whose creation could not be stored."""
        if active.submitted and not active.ending:
            self._cancel_in_worker(active.entry.runs_on, active.id, active.submitted)
        active.ending = True
        active.stop_timers()
        self._remove(active)
        self._dependencies.budgets.remove(active.id)
        self._scheduler.withdrawn(active.id)
        self._drop_inputs(active)

    def start(self, decided: Start) -> None:
        """Begin the run that the scheduler has decided."""
        active = self.active[decided.id]
        active.set_instance(decided.model)
        active.claimed = True
        hardware = self._loads.hardware(decided.devices)
        claimed = active.prediction.started(time.time(), decided.cold_start, hardware)
        # The model computes while the claim is stored; ``active.early`` keeps the events that come meanwhile.
        # A prediction that may call the API is submitted later: its token is valid once the claim is stored.
        if not active.has_files and not active.entry.calls_others:
            self._submit(active, claimed.attempt, active.input)
        if active.created is None and active.submitted and active.awaits_end and not active.entry.files_out:
            timer = asyncio.get_running_loop().call_later(_WRITE_DELAY, self.write_start, active)
            active.unwritten = Unwritten(claimed, decided.model, timer)
        else:
            self._store_start(active, claimed, decided.model)

    def _store_start(self, active: ActivePrediction, claimed: Prediction, model: str) -> None:
        if active.created is None:  # it starts at once: creation and claim are one write
            stored = active.created = self._store.create(claimed)
        else:
            stored = self._store.claim(claimed)
        self._tasks.spawn(self._run(active, claimed, stored, model))

    def write_start(self, active: ActivePrediction) -> None:
        """Write the start of a run whose write was delayed until the end of the prediction."""
        if active.unwritten is not None:
            claimed, model, timer = active.unwritten
            active.unwritten = None
            timer.cancel()
            self._store_start(active, claimed, model)

    def close(self) -> None:
        for active in self.active.values():
            active.stop_timers()
            if active.unwritten is not None:  # no client knows the prediction yet
                active.unwritten.timer.cancel()
        for timer in self._leaving.values():
            timer.cancel()

    def _parent(self, active: ActivePrediction) -> str | None:
        """Return the id of the prediction's parent, if the parent has not ended."""
        parent = active.prediction.parent
        return parent if parent in self.active else None

    def _queue(self, active: ActivePrediction, *, front: bool = False) -> None:
        now = time.monotonic()
        name, parent = active.entry.runs_on, self._parent(active)
        account = active.prediction.owner
        owner, alone = Owner(account, self._dependencies.policy.priority(account)), active.alone
        self._scheduler.queued(active.id, name, now, front=front, alone=alone, parent=parent, owner=owner)

    def _fetch(self, active: ActivePrediction) -> None:
        if active.fetched is None and active.has_files:
            given = (active.input, active.adapters, active.adapter_sources)
            fetching = self._dependencies.inputs.fetch(active.prediction, active.entry.interface, *given)
            active.fetched = asyncio.get_running_loop().create_task(fetching)

    def _drop_inputs(self, active: ActivePrediction) -> None:
        if active.fetched is not None:
            active.fetched.cancel()
        if active.has_files:  # an earlier gateway may have fetched them
            self._tasks.spawn(self._dependencies.inputs.discard(active.id))

    def _remove(self, active: ActivePrediction) -> None:
        self.active.pop(active.id, None)
        self._by_stream_token.pop(active.prediction.stream_token, None)
        parent = active.prediction.parent
        if parent is not None and (children := self._children.get(parent)) is not None:
            children.pop(active.id, None)
            if not children:
                del self._children[parent]

    # -- a run -------------------------------------------------------------------------------------------

    async def _run(
        self, active: ActivePrediction, claimed: Prediction, stored: Awaitable[None], model: str
    ) -> None:
        try:
            if stored is active.created:
                await asyncio.shield(active.created)
            else:
                await records.claim(self._store, claimed, stored)
        except StoreError as error:  # StatusConflict, unless it could not be created: then it is forgotten
            if not active.ending:
                _log.error("prediction %s cannot start: %s", claimed, error)
                active.ending = True
                active.refuse(error)
                self._dependencies.budgets.remove(active.id)
                if active.submitted:
                    self._cancel_in_worker(model, active.id, active.submitted)
            self._remove(active)
            self._apply_early(active, model)
            return
        active.attempt = claimed.attempt
        if not active.ending:
            self._show(active, claimed)
            self._start_run_timeout(active)
        self._apply_early(active, model)
        if active.ending:  # canceled meanwhile, or finished already
            return
        if active.id not in self._scheduler.running(model):
            self.retry_or_fail(active, "the worker process died before the run began")
        elif not active.submitted:
            await self._submit_with_files(active, claimed)

    def _apply_early(self, active: ActivePrediction, model: str) -> None:
        """Apply the events that came before the claim was stored; free the slot if no job was submitted."""
        early, active.early = active.early, []
        freed = [self.apply(model, emitted) for emitted in early]
        if active.ending and not active.submitted:
            self._scheduler.finished(active.id, model, time.monotonic())
            freed.append(True)
        if any(freed):
            self._decide_after_end()

    async def _submit_with_files(self, active: ActivePrediction, claimed: Prediction) -> None:
        try:
            self._fetch(active)
            input = await fetched_input(active)
        except PredictionFailed as error:
            if not active.ending:
                self.end(active, Status.FAILED, error.detail)
                self._decide()
            return
        if active.runs(claimed):
            self._submit(active, claimed.attempt, input)

    def _submit(self, active: ActivePrediction, attempt: int, input: dict[str, Any]) -> None:
        active.submitted = attempt
        self._cluster.submit(active.entry.runs_on, job_of(self._dependencies, active, attempt, input))

    def apply(self, model: str, emitted: Emitted) -> bool:
        """Apply an event of a model's worker process; ignore those of earlier and interrupted attempts.

        Returns whether a slot of the model has become free.
        """
        active = self.active.get(emitted.id)
        event = emitted.event
        if active is not None and (emitted.attempt != active.attempt or active.attempt == active.interrupted):
            if active.attempt + 1 == emitted.attempt:
                active.early.append(emitted)
                if isinstance(event, Done) and active.unwritten is not None:
                    self._end_at_once(active, active.unwritten, event)
                    return True
            return False
        if isinstance(event, Done):
            self._left(model, emitted)
            if active is None:
                self._cluster.acknowledge(model, emitted.id)
        if active is None or active.ending:
            return isinstance(event, Done)
        if isinstance(event, Done):
            self.end(active, Status(event.status), event.error)
            return True
        if emitted.n > active.prediction.n:
            try:
                event = with_stored_files(self._dependencies, active, event)
            except PredictionFailed as error:
                self.end(active, Status.FAILED, f"{INTERRUPTED}: {error.detail}")
                return False
            active.unsaved.append((emitted.n, event))
            self._show(active, active.prediction.apply(event, emitted.n))
        return False

    def _show(self, active: ActivePrediction, record: Prediction) -> None:
        active.show(record)
        self._dependencies.observe(record)

    def _left(self, model: str, emitted: Emitted) -> None:
        if (timer := self._leaving.pop((emitted.id, emitted.attempt), None)) is not None:
            timer.cancel()
        self._scheduler.finished(emitted.id, model, time.monotonic())

    # -- the end -----------------------------------------------------------------------------------------

    def end(self, active: ActivePrediction, status: Status, error: str | None = None) -> None:
        """Begin to end a prediction: its terminal record is stored, then shown. Call this once.

        Unless the status is succeeded, unfinished children are canceled, because their parent no longer
        waits.
        """
        self.write_start(active)
        if active.created is None:  # the scheduler refuses it at once
            active.created = self._store.create(active.prediction)
        active.ending = True
        active.stop_timers()
        model, id = active.entry.runs_on, active.id
        runs = not self._scheduler.withdrawn(id) and id in self._scheduler.running(model)
        if runs and active.submitted:
            self._cancel_in_worker(model, id, active.submitted)
        elif runs and active.prediction.status is Status.PROCESSING:
            self._scheduler.finished(id, model, time.monotonic())
        active.unsaved.clear()
        if status is not Status.SUCCEEDED:
            self._cancel_children(active)
        record = records.ended(active, active.prediction, status, error)
        if record.destination is not None and status is Status.SUCCEEDED:
            self._tasks.spawn(self._finish_training(active, record))
        else:
            self._tasks.spawn(self._finish(active, record, self._store.finish(record)))

    def _end_at_once(self, active: ActivePrediction, start: Unwritten, done: Done) -> None:
        """End a run whose start is not written yet: write start and end in one transaction."""
        active.unwritten = None
        start.timer.cancel()
        active.ending = True
        active.stop_timers()
        early, active.early = active.early, []
        record = start.claimed
        for emitted in early:
            if not isinstance(emitted.event, Done):
                record = record.apply(emitted.event, emitted.n)
        self._left(start.model, early[-1])
        record = records.ended(active, record, Status(done.status), done.error)
        active.created = self._store.create(record)
        active.created.add_done_callback(partial(self._written_at_once, active, start.claimed, record))

    def _written_at_once(
        self, active: ActivePrediction, claimed: Prediction, record: Prediction, written: asyncio.Future[None]
    ) -> None:
        if written.cancelled() or written.exception() is not None:
            self._tasks.spawn(self._finish_at_once(active, claimed, record, written))
        else:
            self._dependencies.observe(claimed)
            self._show_end(active, record)

    async def _finish_at_once(
        self,
        active: ActivePrediction,
        claimed: Prediction,
        record: Prediction,
        written: Awaitable[None],
    ) -> None:
        try:
            try:
                await written
            except UnstorableValue:  # ``records.end`` finds out the reason and stores it
                await self._store.create(claimed)
                written = self._store.finish(record)
        except StoreError as error:
            self._remove(active)
            self._dependencies.budgets.remove(active.id)
            active.refuse(error)
            self._cluster.acknowledge(active.entry.runs_on, active.id)
            return
        self._dependencies.observe(claimed)
        await self._finish(active, record, written)

    def _cancel_children(self, active: ActivePrediction) -> None:
        for child in self.children_of(active.id):
            if not child.ending:
                self.end(child, Status.CANCELED)

    def _cancel_in_worker(self, model: str, id: str, attempt: int) -> None:
        self._cluster.cancel(model, id)
        self._leaving[id, attempt] = asyncio.get_running_loop().call_later(
            self._dependencies.limits.cancel_grace, self._stuck, model, id, attempt
        )

    def _stuck(self, model: str, id: str, attempt: int) -> None:
        """Kill a worker process that did not stop a canceled prediction in time; retry its other runs."""
        self._leaving.pop((id, attempt), None)
        grace = self._dependencies.limits.cancel_grace
        _log.error(
            "killing the worker process of model %s: it did not stop prediction %s within %.1f s",
            model, id, grace, extra={"model": model, "prediction": id},
        )  # fmt: skip
        self._kill_worker(model, "it did not respond to a cancel")

    async def _finish_training(self, active: ActivePrediction, record: Prediction) -> None:
        record = await records.finalized(self._dependencies.finalize, record)
        self._loads.reload_instances(active.entry.model.name)
        self._decide()
        await self._finish(active, record, self._store.finish(record))

    async def _finish(self, active: ActivePrediction, record: Prediction, written: Awaitable[None]) -> None:
        self._show_end(active, await records.end(self._store, record, written))

    def _show_end(self, active: ActivePrediction, stored: Prediction) -> None:
        self._remove(active)
        self._dependencies.budgets.count(stored)
        self._show(active, stored)
        self._drop_inputs(active)
        self._cluster.acknowledge(active.entry.runs_on, active.id)

    async def end_unserved(self, record: Prediction) -> None:
        """Store and publish the terminal ``record`` of a prediction whose version is no longer served."""
        stored = await records.end(self._store, record, self._store.finish(record))
        self._dependencies.budgets.count(stored)
        self._dependencies.observe(stored)

    def end_outdated(self) -> None:
        """Fail the queued predictions whose version was replaced and will not be loaded again."""
        for active in list(self.active.values()):
            if not active.waits or self._catalogue.serves(active.entry):
                continue
            if not self._scheduler.served_before_replacement(active.id):
                self.end(active, Status.FAILED, OUTDATED.format(active.entry.name))

    def _start_deadline(self, active: ActivePrediction) -> None:
        deadline = active.prediction.deadline
        if deadline is not None:
            delay = max(0.0, deadline - time.time())
            active.timers.append(asyncio.get_running_loop().call_later(delay, self._deadline, active))

    def _deadline(self, active: ActivePrediction) -> None:
        if not active.ending:
            self.end(active, Status.ABORTED if active.waits else Status.CANCELED)
            self._decide()

    def _start_run_timeout(self, active: ActivePrediction) -> None:
        limit, key = active.run_timeout(self._dependencies.limits)
        timer = asyncio.get_running_loop().call_later(limit, self._timed_out, active, limit, key)
        active.timers.append(timer)

    def _timed_out(self, active: ActivePrediction, limit: float, key: str) -> None:
        if not active.ending:
            self.end(active, Status.FAILED, f"Prediction ran longer than {key} ({limit:g} s)")

    # -- lost runs ---------------------------------------------------------------------------------------

    def worker_lost(self, ids: Iterable[str], reason: str, oom: OutOfMemoryAdvice | None) -> None:
        """Retry or fail the predictions of a lost worker process.

        ``oom`` is the advice for the next load if the process ran out of memory, else None.
        """
        ids = frozenset(ids)
        for key in [key for key in self._leaving if key[0] in ids]:
            self._leaving.pop(key).cancel()
        for active in [self.active[id] for id in ids if id in self.active]:
            if active.prediction.status is not Status.PROCESSING or active.ending:
                continue
            # If the next load gets no more memory, retry only if another prediction may have used too much.
            if oom is not None and (active.out_of_memory or (not oom.grown and len(ids) == 1)):
                self.end(active, Status.FAILED, reason)
            else:
                active.out_of_memory = active.out_of_memory or oom is not None
                # Not Cog projects: their predictions may wait for children that run on the same model.
                active.alone = len(ids) > 1 and active.entry.kind != "cog"
                self.retry_or_fail(active, reason)

    def retry_or_fail(self, active: ActivePrediction, reason: str) -> None:
        """Queue an interrupted run again if no client may have seen its output; else fail the prediction."""
        prediction = active.prediction
        if prediction.status is Status.PROCESSING and prediction.output is not None:
            self.end(active, Status.FAILED, f"{INTERRUPTED}: {reason}")
        elif prediction.attempt >= self._dependencies.limits.attempts:
            self.end(active, Status.FAILED, f"{INTERRUPTED}: {reason} (attempt {prediction.attempt})")
        else:
            active.interrupted = active.attempt
            self._tasks.spawn(self._requeue(active))

    async def _requeue(self, active: ActivePrediction) -> None:
        active.stop_timers()
        active.unsaved.clear()
        active.early.clear()
        active.saving, active.submitted = None, 0
        self._cancel_children(active)
        record = active.prediction
        if record.status is Status.PROCESSING:
            record = record.transition(Status.STARTING, started_at=None)
            await records.requeue(self._store, record)
        if active.ending:
            return
        active.claimed = False
        if not self._catalogue.serves(active.entry):
            self.end(active, Status.FAILED, OUTDATED.format(active.entry.name))
            return
        self._show(active, record)
        self._start_deadline(active)
        self._queue(active, front=True)
        self._decide()
