"""The loop: carries out the scheduler's decisions and makes every change of a status.

Facts come in (a request, a batch of events, a lost host, a timer), the scheduler is asked what to do, and the
decisions are carried out as tasks. No method awaits between reading a prediction's state and changing it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from appliance.cluster.base import Cluster
from appliance.config import LimitsConfig
from appliance.domain.errors import PredictionFailed, StatusConflict, StoreError, Unstorable
from appliance.domain.prediction import Done, Emitted, Job, Output, Prediction, Status
from appliance.domain.token import RunTokens
from appliance.gateway.catalogue.catalogue import Catalogue, Entry
from appliance.gateway.engine import report
from appliance.gateway.engine.active import ActivePrediction, Events, fetched
from appliance.gateway.engine.device_memory import DeviceMemory
from appliance.gateway.engine.loads import Loads
from appliance.gateway.engine.memory_profiles import MemoryProfiles
from appliance.gateway.engine.records import Records, concluded_by
from appliance.gateway.engine.workers import Workers
from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.inputs import Inputs
from appliance.scheduler import Decision, Load, Refuse, Residency, Scheduler, Sleep, Start, Unload, Wake
from appliance.scheduler.event_log import Event
from appliance.store import RETRY_STORE, Store

T = TypeVar("T")
_log = logging.getLogger(__name__)

SAVE_INTERVAL: Final = 0.25  # seconds between writes of a running prediction's events
OUTDATED: Final = "model {} was changed or removed in models.yaml meanwhile; send the prediction again"
INTERRUPTED: Final = "Prediction interrupted; please retry (code: PA)"


class Loop:
    """Owns every prediction that is not finished."""

    def __init__(
        self,
        *,
        limits: LimitsConfig,
        catalogue: Catalogue,
        store: Store,
        cluster: Cluster,
        scheduler: Scheduler,
        loads: Loads,
        sizes: MemoryProfiles,
        room: DeviceMemory,
        files: FileStore,
        inputs: Inputs,
        run_tokens: RunTokens,
        observe: Callable[[Prediction], None],
        on_event: Callable[[Event], None],
        finalize: Callable[[Prediction], Awaitable[Prediction]],
    ) -> None:
        """Nothing happens before ``start``."""
        self.limits = limits
        self._catalogue = catalogue
        self._store = store
        self._records = Records(store)
        self._cluster = cluster
        self._scheduler = scheduler
        self._loads = loads
        self._sizes = sizes
        self._room = room
        self.hosts = Workers(cluster, scheduler, sizes, room, self)
        self._files = files
        self._inputs = inputs
        self._run_tokens = run_tokens
        self._observe = observe
        self._heed = on_event
        self._conclude = finalize
        self.live: dict[str, ActivePrediction] = {}
        self.draining = False
        self._closed = False
        self._leaving: dict[tuple[str, int], asyncio.TimerHandle] = {}  # canceled, but still in their host
        self._tasks: set[asyncio.Task[object]] = set()
        self._wakeup: asyncio.TimerHandle | None = None
        self._saver: asyncio.Task[None] | None = None
        self._logged = 0  # the last of the scheduler's happenings that is in the log

    def start(self) -> None:
        """Begin to decide and to save."""
        self._saver = self.spawn(self._save_forever())
        self.decide()

    @property
    def problem(self) -> str | None:
        """Why no new work is taken; None if it is."""
        if self.draining:
            return "it is draining"
        return None if self._saver is not None and not self._saver.done() else "the engine has stopped"

    async def close(self) -> None:
        """Stop deciding and write what is not written yet."""
        self.draining = self._closed = True
        self._loads.close()
        if self._wakeup is not None:
            self._wakeup.cancel()
        for live in self.live.values():
            live.stop_timers()
        for timer in self._leaving.values():
            timer.cancel()
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writes = [live.saving for live in self.live.values() if live.saving is not None]
        await asyncio.gather(*writes, return_exceptions=True)
        self._save()

    def admit(
        self, prediction: Prediction, entry: Entry, validated: dict[str, Any], *, queue: bool = True
    ) -> ActivePrediction:
        """Make a prediction known here; with ``queue`` it waits for its model from now on."""
        live = ActivePrediction(prediction, entry, validated)
        self.live[prediction.id] = live
        whole = self.live.get(prediction.parent or "")
        if whole is not None:
            whole.parts.add(prediction.id)
        if prediction.deadline is not None:
            delay = max(0.0, prediction.deadline - time.time())
            live.timers.append(asyncio.get_running_loop().call_later(delay, self._deadline, live))
        if queue:
            self._fetch(live)
            self._queue(live)
        return live

    def _queue(self, live: ActivePrediction, *, front: bool = False) -> None:
        parent = live.prediction.parent
        whole = parent if parent in self.live else None
        now = time.monotonic()
        self._scheduler.queued(live.id, live.entry.runs_on, now, front=front, whole=whole)

    def _fetch(self, live: ActivePrediction) -> None:
        """Begin to fetch the files of the input, while it waits for its model."""
        if live.fetched is None and live.entry.files_in:
            live.fetched = asyncio.get_running_loop().create_task(
                self._inputs.fetch(live.prediction, live.entry.interface, live.input)
            )

    def forget(self, live: ActivePrediction) -> None:
        """The prediction could not be stored: it never was."""
        live.ending = True
        live.stop_timers()
        self._remove(live)
        self._scheduler.withdrawn(live.id)
        self._drop_inputs(live)

    def _remove(self, live: ActivePrediction) -> None:
        self.live.pop(live.id, None)
        whole = self.live.get(live.prediction.parent or "")
        if whole is not None:
            whole.parts.discard(live.id)

    def _drop_inputs(self, live: ActivePrediction) -> None:
        if live.fetched is not None:
            live.fetched.cancel()
            self.spawn(self._inputs.discard(live.id))

    def decide(self) -> None:
        """Ask the scheduler and carry out what it says; while draining only parts of what runs begin."""
        if self._closed:
            return
        now = time.monotonic()
        self._room.look(now)
        for decision in self._scheduler.decide(now, parts_only=self.draining):
            self._carry_out(decision)
        for happening in self._scheduler.happenings(self._logged):
            self._logged = happening.number
            report.log(happening)
            self._heed(happening)
        self._sizes.tell_limits()
        self._loads.ahead(now)
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        at = self._scheduler.next_wakeup(now)
        if at is not None:
            self._wakeup = asyncio.get_running_loop().call_later(max(0.0, at - now), self.decide)

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Refuse(id, reason):
                self.end(self.live[id], Status.FAILED, reason)
            case Start(id, model, cold_start):
                self.live[id].begins_on(model)
                self.spawn(self._run(self.live[id], cold_start))
            case Load(model, devices, memory):
                self.spawn(self._load(self._catalogue.hosted(model), devices, memory))
            case Sleep(model):
                self.hosts.turn(model, partial(self._loads.sleep, decision))
            case Wake(model):
                self.hosts.turn(model, partial(self._loads.wake, model))
            case Unload(model):
                self.spawn(self.hosts.unload(model))

    async def _run(self, live: ActivePrediction, cold_start: float) -> None:
        """Claim the prediction, then hand it to its model; ``cold_start`` is what it waited for a load."""
        model = live.entry.runs_on
        live.claimed = True
        claimed = live.prediction.started(time.time(), cold_start, self._loads.hardware(model))
        try:
            await self._store.claim(claimed)
        except StatusConflict:
            if not live.ending:
                _log.exception("prediction %s was not claimed: it is no longer starting", claimed)
            self._remove(live)
            self._free(live.id, model)
            return
        except StoreError as error:
            _log.error("prediction %s could not be claimed, it waits: %s", claimed, error)
            await asyncio.sleep(RETRY_STORE)
            self._scheduler.finished(live.id, model, time.monotonic())
            await self._requeue(live)
            return
        if live.ending:  # canceled meanwhile: its end is written behind the claim
            self._free(live.id, model)
            return
        self._show(live, claimed)
        if live.id not in self._scheduler.running(model):
            self.retry_or_fail(live, "its engine host died before it began")
            return
        self.limit_run(live)
        try:
            self._fetch(live)
            input = await fetched(live)
        except PredictionFailed as error:
            if not live.ending:
                self.end(live, Status.FAILED, error.detail)
                self.decide()
            return
        if not live.runs(claimed):
            return
        live.submitted = True
        self._cluster.submit(
            model,
            Job(
                live.id,
                claimed.attempt,
                input,
                folder=self._files.outputs(live.id, claimed.attempt),
                adapter=live.entry.adapter,
                inline=self._files.inline,
                token=self._run_tokens.make(live.id, claimed.attempt) if live.entry.calls_others else None,
                operation=claimed.operation,
            ),
        )

    def limit_run(self, live: ActivePrediction) -> None:
        """Start the clock of ``limits.run_timeout``."""
        live.timers.append(
            asyncio.get_running_loop().call_later(self.limits.run_timeout, self._timed_out, live)
        )

    async def _load(self, entry: Entry, devices: tuple[str, ...], memory: int) -> None:
        failure = await self._loads.load(entry, devices, memory)
        if failure is not None:
            for id in failure.waiting:
                self.end(self.live[id], Status.FAILED, failure.reason)
        elif self._scheduler.residency(entry.runs_on) is Residency.READY:
            self.hosts.follow(entry.runs_on)
            self.renew(entry.runs_on)
        self.end_outdated()
        self.decide()

    def end_outdated(self) -> None:
        """Fail what waits for a version that will not be loaded again, and is not loaded now."""
        for live in list(self.live.values()):
            waits = live.prediction.status is Status.STARTING and not live.claimed and not live.ending
            if waits and not self._catalogue.serves(live.entry) and not self._scheduler.stays(live.id):
                self.end(live, Status.FAILED, OUTDATED.format(live.entry.name))

    def apply(self, model: str, emitted: Emitted) -> None:
        """Take in one event of a model's host."""
        live = self.live.get(emitted.id)
        event = emitted.event
        if live is not None and live.prediction.attempt != emitted.attempt:
            return
        if isinstance(event, Done):
            self._left(model, emitted)
            if live is None:
                self._cluster.acknowledge(model, emitted.id)
        if live is None or live.ending:
            return
        if isinstance(event, Done):
            self.end(live, Status(event.status), event.error)
            return
        if emitted.n > live.prediction.n:
            if isinstance(event, Output) and live.entry.files_out:
                event = Output(self._files.register(live.prediction, event.values), append=event.append)
            live.unsaved.append((emitted.n, event))
            self._show(live, live.prediction.apply(event, emitted.n))

    def _show(self, live: ActivePrediction, record: Prediction) -> None:
        live.show(record)
        self._observe(record)

    def _left(self, model: str, emitted: Emitted) -> None:
        """The host has let go of a prediction: its slot is free."""
        if (timer := self._leaving.pop((emitted.id, emitted.attempt), None)) is not None:
            timer.cancel()
        self._scheduler.finished(emitted.id, model, time.monotonic())

    def _free(self, id: str, model: str) -> None:
        self._scheduler.finished(id, model, time.monotonic())
        self.decide()

    def end(self, live: ActivePrediction, status: Status, error: str | None = None) -> None:
        """Begin the one terminal move of a prediction: stored first, then shown."""
        live.ending = True
        live.stop_timers()
        model, id = live.entry.runs_on, live.id
        runs = not self._scheduler.withdrawn(id) and id in self._scheduler.running(model)
        if runs and live.submitted:
            self._stop_in_host(model, id, live.prediction.attempt)
        elif runs and live.prediction.status is Status.PROCESSING:
            self._scheduler.finished(id, model, time.monotonic())
        live.unsaved.clear()
        if status is not Status.SUCCEEDED:
            self._end_parts(live)
        record = live.prediction.finished(status, time.time(), error)
        if status is Status.SUCCEEDED and record.output is None and live.iterates:
            record = record.evolve(output=[])  # as on Replicate: clients join or iterate over the output
        self.spawn(self._finish(live, record))

    def _end_parts(self, live: ActivePrediction) -> None:
        """Nobody waits any more for what this attempt of a prediction has asked for."""
        for part in [self.live[id] for id in live.parts]:
            if not part.ending:
                self.end(part, Status.CANCELED)

    def _stop_in_host(self, model: str, id: str, attempt: int) -> None:
        self._cluster.cancel(model, id)
        self._leaving[id, attempt] = asyncio.get_running_loop().call_later(
            self.limits.cancel_grace, self._stuck, model, id, attempt
        )

    async def _finish(self, live: ActivePrediction, record: Prediction) -> None:
        if record.destination is not None and record.status is Status.SUCCEEDED:
            record = await concluded_by(self._conclude, record)
            for key in self._loads.of(live.entry.model.name):
                self.renew(key)
        stored = await self._records.end(record)
        self._remove(live)
        self._show(live, stored)
        self._drop_inputs(live)
        self._cluster.acknowledge(live.entry.runs_on, live.id)

    def renew(self, key: str) -> None:
        """Load a model again if it was loaded when nothing was trained on it yet; what runs there may end."""
        ready = self._scheduler.knows(key) and self._scheduler.residency(key) is Residency.READY
        if ready and not self._loads.current(self._catalogue.hosted(key)):
            self._scheduler.unwanted(key, "a first version was trained on it", time.monotonic())
            self._scheduler.wanted(key)
            self.decide()

    async def end_unserved(self, record: Prediction) -> None:
        """Store the end of a prediction that is not live here, because its version is not served any more."""
        self._observe(await self._records.end(record))

    def _deadline(self, live: ActivePrediction) -> None:
        if not live.ending:
            waiting = live.prediction.status is Status.STARTING and not live.claimed
            self.end(live, Status.ABORTED if waiting else Status.CANCELED)
            self.decide()

    def _timed_out(self, live: ActivePrediction) -> None:
        if not live.ending:
            limit = self.limits.run_timeout
            self.end(live, Status.FAILED, f"Prediction ran longer than limits.run_timeout ({limit:g} s)")

    def _stuck(self, model: str, id: str, attempt: int) -> None:
        """A host did not let go of a canceled prediction in time: it is killed, its other work runs again."""
        self._leaving.pop((id, attempt), None)
        about = {"model": model, "prediction": id}
        _log.error("model %s did not stop prediction %s in time; its host is killed", model, id, extra=about)
        self.spawn(self.hosts.kill(model, "it did not respond to a cancel"))

    def host_lost(self, model: str, reason: str, *, out_of_memory: bool = False, again: bool = True) -> None:
        """The host is gone. If it ``out_of_memory``, ``again`` says whether the next gets more memory."""
        running = self._scheduler.running(model)
        _log.error(
            "model %s lost its host with %d predictions: %s",
            model,
            len(running),
            reason,
            extra={"model": model},
        )
        for key in [key for key in self._leaving if key[0] in running]:
            self._leaving.pop(key).cancel()
        self._scheduler.lost(model, time.monotonic(), reason)
        self._sizes.gone(model)
        for live in [self.live[id] for id in running if id in self.live]:
            if live.prediction.status is not Status.PROCESSING or live.ending:
                continue
            # If it gets no more, predictions run again only if it could have been another one's fault.
            if out_of_memory and (live.out_of_memory or (not again and len(running) == 1)):
                self.end(live, Status.FAILED, reason)
            else:
                live.out_of_memory = live.out_of_memory or out_of_memory
                self.retry_or_fail(live, reason)
        self.end_outdated()
        self.decide()

    def retry_or_fail(self, live: ActivePrediction, reason: str) -> None:
        """Run it again if nobody can have seen output of the lost run, else fail it with what it has."""
        prediction = live.prediction
        if prediction.status is Status.PROCESSING and prediction.output is not None:
            self.end(live, Status.FAILED, f"{INTERRUPTED}: {reason}")
        elif prediction.attempt >= self.limits.attempts:
            self.end(live, Status.FAILED, f"{INTERRUPTED}: {reason} (attempt {prediction.attempt})")
        else:
            self.spawn(self._requeue(live))

    async def _requeue(self, live: ActivePrediction) -> None:
        live.stop_timers()
        live.unsaved.clear()
        live.saving = None
        live.submitted = False
        self._end_parts(live)
        record = live.prediction
        if record.status is Status.PROCESSING:
            record = record.move(Status.STARTING, started_at=None)
            await self._records.requeue(record)
        if live.ending:
            return
        live.claimed = False
        if not self._catalogue.serves(live.entry):
            self.end(live, Status.FAILED, OUTDATED.format(live.entry.name))
            return
        self._show(live, record)
        if record.deadline is not None:
            delay = max(0.0, record.deadline - time.time())
            live.timers.append(asyncio.get_running_loop().call_later(delay, self._deadline, live))
        self._queue(live, front=True)
        self.decide()

    async def _save_forever(self) -> None:
        while True:
            await asyncio.sleep(SAVE_INTERVAL)
            self._save()

    def _save(self) -> None:
        """Queue what running predictions have gained; a later ``finish`` is written after it.

        One after the other: were a write refused and its next one made, a restart would find a hole.
        """
        for live in self.live.values():
            if live.unsaved and not live.ending and (live.saving is None or live.saving.done()):
                events, live.unsaved = live.unsaved, []
                live.saving = self._store.append(live.id, live.prediction.attempt, events)
                live.saving.add_done_callback(partial(self._saved, live, events))

    def _saved(self, live: ActivePrediction, events: Events, written: asyncio.Future[None]) -> None:
        error = None if written.cancelled() else written.exception()
        if error is None or isinstance(error, (StatusConflict, Unstorable)):  # the end will say which
            return
        _log.error("output of prediction %s could not be stored yet: %s", live.prediction, error)
        if live.saving is written and not live.ending:
            live.unsaved[:0] = events

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` beside the loop; what goes wrong in it is logged."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of the engine failed", exc_info=error)
