"""The engine accepts predictions (``submit``), runs them, and returns their records and the states of models.

After each request, worker event or timer, ``decide`` gets decisions from the scheduler and carries them out.
Only ``predictions`` changes statuses; only ``loads`` and ``workers`` start and stop worker processes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final, Unpack

from appliance.config import LimitsConfig
from appliance.domain import input_schema
from appliance.domain.access import Access, Policy
from appliance.domain.errors import InvalidVersion, LoadFailed, NotFound, ShuttingDown, StoreError
from appliance.domain.prediction import Prediction, Status, Webhook, new_id, new_stream_token
from appliance.gateway.catalogue import adapters
from appliance.gateway.catalogue.catalogue import ServedVersion, operating
from appliance.gateway.engine import admission, recovery, report
from appliance.gateway.engine.active import ActivePrediction, Seen, follow, items, without_secrets
from appliance.gateway.engine.dependencies import Dependencies
from appliance.gateway.engine.device_memory import DeviceMemory
from appliance.gateway.engine.instances import Instances
from appliance.gateway.engine.loads import Failed, Loads, Ready, Retry
from appliance.gateway.engine.memory_profiles import MemoryProfiles
from appliance.gateway.engine.nodes import EngineNodes
from appliance.gateway.engine.predictions import Predictions
from appliance.gateway.engine.prefetch import Prefetch
from appliance.gateway.engine.queue_info import with_queue_info
from appliance.gateway.engine.reconcile import reconcile
from appliance.gateway.engine.saver import Saver
from appliance.gateway.engine.tasks import Tasks
from appliance.gateway.engine.workers import Workers
from appliance.protocols.admin_types import ResidencyResponse, SchedulerStatus
from appliance.scheduler import Decision, Demand, Load, Refuse, Residency, Sleep, Start, Unload, Wake
from appliance.store import Cursor, Filter

_log = logging.getLogger(__name__)

_SOON: Final = 0.05  # seconds from the end of a prediction to the next check for idle models
Ids = list[str]  # named here because the method ``list`` hides the builtin


class Engine:
    """Accepts and runs predictions. One per gateway; used on its event loop only."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._catalogue = dependencies.catalogue
        self._store = dependencies.store
        self._scheduler = dependencies.scheduler
        self._tasks = Tasks()
        devices = dependencies.devices
        self._memory_profiles = MemoryProfiles(
            self._catalogue, self._scheduler, dependencies.cluster, self._store, devices.hardware.kind
        )
        self._device_memory = DeviceMemory(self._scheduler, devices.in_use, devices.kinds, devices.refresh)
        self.budgets = dependencies.budgets
        self.instances = Instances(self._catalogue, self._scheduler)
        self._prefetch = Prefetch(self._catalogue, self._scheduler, dependencies.home)
        self._loads = Loads(dependencies, self._memory_profiles)
        self.nodes = EngineNodes(dependencies, self._tasks, self._loads, self.decide)
        self._predictions = Predictions(
            dependencies,
            self._tasks,
            self._loads,
            decide=self.decide,
            decide_after_end=self.decide_after_end,
            kill_worker=self._kill_worker,
        )
        self._active = self._predictions.active
        self._workers = Workers(
            dependencies,
            self._tasks,
            self._loads,
            self._memory_profiles,
            self._device_memory,
            self._predictions,
            decide=self.decide,
            decide_after_end=self.decide_after_end,
        )
        self._saver = Saver(self._store, self._active)
        self._saving: asyncio.Task[None] | None = None
        self._draining = self._closed = False
        self._wakeup: asyncio.TimerHandle | None = None
        self._last_event = 0  # number of the last event of the scheduler's log that was handled

    async def start(self) -> None:
        """Adopt the models and predictions of an earlier gateway, then begin to carry out decisions."""
        await self._memory_profiles.load()
        await recovery.restore_budgets(self._dependencies)
        held = await recovery.adopt_models(self._dependencies, self._loads, self._memory_profiles)
        failed = await recovery.recover_predictions(
            self._dependencies, self._predictions, self.instances, self._memory_profiles, held
        )
        for record in failed:
            self._tasks.spawn(self._predictions.end_unserved(record))
        for model in held:
            self._workers.follow(model)
        self._saving = self._tasks.spawn(self._saver.run())
        self.decide()

    async def close(self) -> None:
        """Cancel all tasks, and store events that are not stored yet."""
        self._draining = self._closed = True
        self._prefetch.close()
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._predictions.close()
        await self._tasks.cancel()
        await self._dependencies.devices.close()
        await self._saver.close()

    async def drain(self, seconds: float) -> int:
        """Refuse new predictions and wait up to ``seconds`` for running ones; return how many are unfinished.

        Unfinished predictions stay stored; the next start continues them.
        """
        self._draining = True
        running = [active.ended() for active in self._active.values() if active.claimed]
        if not running:
            return 0
        tasks = [asyncio.ensure_future(wait) for wait in running]
        _, unfinished = await asyncio.wait(tasks, timeout=seconds)
        for task in unfinished:
            task.cancel()
        return len(unfinished)

    @property
    def problem(self) -> str | None:
        """The reason why new predictions are refused; None if they are accepted."""
        if self._draining:
            return "it is draining"
        return None if self._saving is not None and not self._saving.done() else "the engine has stopped"

    # -- decisions ---------------------------------------------------------------------------------------

    def decide(self) -> None:
        """Carry out the scheduler's decisions; while draining, start only children of running predictions."""
        if self._closed or self._saving is None:  # it has not started yet
            return
        now = time.monotonic()
        self._device_memory.update(now)
        for decision in self._scheduler.decide(now, children_only=self._draining):
            self._carry_out(decision)
        for event in self._scheduler.events(self._last_event):
            self._last_event = event.number
            report.log(event)
            self._dependencies.on_event(event)
        self._memory_profiles.send_limits()
        self._prefetch.update(now)
        self.nodes.log_unplaceable(now)
        if self._wakeup is not None:
            self._wakeup.cancel()
            self._wakeup = None
        at = self._scheduler.next_wakeup(now)
        if at is not None:
            self._wakeup = asyncio.get_running_loop().call_later(max(0.0, at - now), self.decide)

    def decide_after_end(self) -> None:
        """Call ``decide`` after a run has ended: at once if a prediction or model waits, else soon."""
        if not self._scheduler.nothing_waits:
            self.decide()
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + _SOON
        if self._closed or (self._wakeup is not None and self._wakeup.when() <= at):
            return
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._wakeup = loop.call_at(at, self.decide)

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Refuse(id, reason):
                self._predictions.end(self._active[id], Status.FAILED, reason)
            case Start():
                self._predictions.start(decision)
            case Load():
                self._tasks.spawn(self._load(decision))
            case Sleep():
                self._workers.sleep(decision)
            case Wake(model):
                self._workers.wake(model)
            case Unload():
                self._tasks.spawn(self._workers.unload(decision))

    async def _load(self, decided: Load) -> None:
        model = decided.model
        outcome = await self._loads.load(self._catalogue.entry_for(model), decided)
        now = time.monotonic()
        match outcome:
            case Ready(levels):
                self._scheduler.loaded(model, now, levels)
                self._loads.resolve(model)
                if self._scheduler.residency(model) in {Residency.READY, Residency.DRAINING}:
                    self._workers.follow(model)
                    self._loads.reload_model(model)
            case Retry(reason):
                self._scheduler.lost(model, now, reason)
            case Failed(reason):
                for id in self._scheduler.load_failed(model, now, reason):
                    self._predictions.end(self._active[id], Status.FAILED, reason)
                self._loads.resolve(model, LoadFailed(reason))
        self._predictions.end_outdated()
        self.decide()

    def _kill_worker(self, model: str, reason: str) -> None:
        self._tasks.spawn(self._workers.kill(model, reason))

    # -- predictions -------------------------------------------------------------------------------------

    async def submit(
        self,
        entry: ServedVersion,
        input: Any,
        *,
        owner: str,
        parent: str | None,
        token: str | None,
        trace: str | None,
        operation: str | None = None,
        deadline: float | None = None,
        webhook: Webhook | None = None,
        deployment: str | None = None,
        destination: str | None = None,
        awaits_end: bool = False,
        access: Access | None = None,
    ) -> Prediction:
        """Accept a prediction and return its record once the record is stored.

        With ``awaits_end`` the record may be returned before it is stored. The caller must call ``wait`` at
        once, and must not show the prediction to a client before ``wait`` returns.

        ``deadline`` is in Unix seconds. With ``destination`` the prediction is a training, and ``entry`` a
        trainer. ``parent`` is the id of the running prediction that creates this one. With ``operation``,
        ``input`` is that of one of ``runners.operations``. ``token`` is the id of the caller's
        API token, ``access`` what it permits, ``trace`` the request's traceparent; a child has its parent's.

        Raises:
            Unauthenticated: ``parent`` has ended.
            InvalidInput: names every wrong field.
            ModelTooLarge: no devices could hold the model.
            Throttled, BudgetSpent: too many predictions wait, or a budget is spent.
            ShuttingDown: the appliance is draining.
        """
        if operation is not None:
            entry = operating(entry, operation, input)
        validated = input_schema.validate(entry.interface, input)
        validated = adapters.selected(self._catalogue, entry, validated, access or Access(owner))
        if self._draining and parent is None:
            raise ShuttingDown
        recovery.add_to_scheduler(self._dependencies, self._memory_profiles, entry)
        self.nodes.check_fits(entry.runs_on)
        entry = self.instances.choose(entry)
        context = admission.RequestContext(token, trace)
        context = admission.admit(self._dependencies, self._predictions, entry, owner, context, parent)
        prediction = Prediction(
            id=new_id(),
            model=entry.name,
            version=entry.version,
            owner=owner,
            input=without_secrets(entry, input),
            # as precise as in responses, so that clients can filter by this time
            created_at=round(time.time(), 6),
            deadline=deadline,
            webhook=webhook,
            stream_token=new_stream_token(files=entry.files_out),
            deployment=deployment,
            destination=destination,
            parent=parent,
            operation=operation,
            token=context.token,
            trace=context.trace,
        )
        if parent is not None:
            _log.info("prediction %s was created for model %s", prediction, entry.name)
        active = self._predictions.add(prediction, entry, validated)
        active.awaits_end = awaits_end and parent is None and webhook is None
        await self._enqueue(active)
        return prediction

    async def _enqueue(self, active: ActivePrediction) -> None:
        """Queue a new prediction, start it if its model has a free slot, and wait until it is stored.

        The prediction may start before it is stored, because no client knows its id yet.
        """
        self._predictions.enqueue(active)
        if not self._draining:
            for start in self._scheduler.start_queued(active.entry.runs_on, time.monotonic()):
                self._predictions.start(start)
        if not active.claimed:
            self.decide()
        if active.unwritten is not None:  # the caller waits for the end, not for this write
            return
        if active.created is None:
            active.created = self._store.create(active.prediction)
        try:
            await asyncio.shield(active.created)
        except StoreError:
            self._predictions.forget(active)
            raise

    async def get(self, id: str, owner: str | None) -> Prediction:
        """Return the current record of a prediction of this owner, or of any owner if ``owner`` is None.

        Raises:
            NotFound: there is no such prediction of this owner.
        """
        active = self._active.get(id)
        prediction = await self._store.get(id) if active is None else with_queue_info(active, self._scheduler)
        if prediction is None or owner not in {None, prediction.owner}:
            raise NotFound
        return prediction

    async def by_stream_token(self, token: str) -> Prediction:
        """Return the record of the prediction whose stream URL has this token.

        Raises:
            NotFound: no prediction has this token.
        """
        prediction = self._predictions.by_stream_token(token) or await self._store.by_stream_token(token)
        if prediction is None:
            raise NotFound
        return prediction

    async def list(
        self, owner: str | None, *, cursor: Cursor | None = None, limit: int = 100, **filters: Unpack[Filter]
    ) -> Sequence[Prediction]:
        """Return one page of ``Store.list``, newest first, with current records of unfinished predictions.

        Raises:
            NotFound: there is no prediction ``parent`` of this owner.
        """
        parent = filters.get("parent")
        if parent is not None:  # children are younger than the parent: fewer rows to read
            since = (await self.get(parent, owner)).created_at
            filters["created_after"] = max(filters.get("created_after") or since, since)
        return self.current(await self._store.list(owner, cursor=cursor, limit=limit, **filters))

    def current(self, stored: Sequence[Prediction]) -> Sequence[Prediction]:
        """Return ``stored`` with the current records of unfinished predictions."""
        active = self._active
        return [
            with_queue_info(active[each.id], self._scheduler) if each.id in active else each
            for each in stored
        ]

    async def children_of(self, record: Prediction) -> Ids:
        """Return the ids of the children of a prediction, finished or not, oldest first."""
        return await self._store.children(record.id)

    async def cancel(self, id: str, owner: str | None) -> Prediction:
        """Cancel a prediction if it is unfinished; return its terminal record.

        Raises:
            NotFound: there is no such prediction of this owner.
        """
        prediction = await self.get(id, owner)
        active = self._active.get(id)
        if active is None:
            return prediction
        if not active.ending:
            self._predictions.end(active, Status.CANCELED)
        await active.ended()
        return active.prediction

    async def wait(self, id: str, seconds: float) -> Prediction | None:
        """Wait up to ``seconds`` for the end; return the record, or None if the id is unknown.

        Raises:
            StoreError: the prediction could not be created (see ``submit`` with ``awaits_end``).
        """
        active = self._active.get(id)
        if active is None:
            return await self._store.get(id)
        if not await active.ended(seconds):
            self._predictions.write_start(active)
        if active.created is not None and not active.prediction.status.terminal:
            await asyncio.shield(active.created)
        return active.prediction

    async def follow(
        self, prediction: Prediction, after: int = 0, *, idle: float = 10.0
    ) -> AsyncIterator[Seen]:
        """Yield output items with a number over ``after`` (from 1), each once; then the terminal record.

        Items that are available together are yielded as one list. None means no new item for ``idle``
        seconds.
        """
        active = self._active.get(prediction.id)
        if active is not None:
            async for seen in follow(active, after, idle):
                yield seen
            return
        ended = prediction if prediction.status.terminal else await self._store.get(prediction.id)
        if ended is None:
            raise NotFound
        present = items(ended, iterates=self._iterates(ended))[after:]
        if present:
            yield list(enumerate(present, after + 1))
        yield ended

    def item_count(self, prediction: Prediction) -> int:
        """Return the number of items in the stream of a finished prediction."""
        return len(items(prediction, iterates=self._iterates(prediction)))

    def _iterates(self, ended: Prediction) -> bool:
        """Return whether the output was a stream of items.

        If the version is no longer served, an output that is a list counts as a stream.
        """
        try:
            return recovery.served(self._catalogue, ended).interface.iterates
        except InvalidVersion:
            return isinstance(ended.output, list)

    def running(self, id: str, attempt: int) -> Prediction | None:
        """Return the record of a prediction whose attempt number ``attempt`` is running, else None."""
        active = self._active.get(id)
        if active is None or active.ending or active.prediction.status is not Status.PROCESSING:
            return None
        return active.prediction if active.prediction.attempt == attempt else None

    def uses(self, version: str) -> bool:
        return any(active.prediction.version == version for active in self._active.values())

    # -- models ------------------------------------------------------------------------------------------

    def residency(self, entry: ServedVersion) -> Residency:
        return self._scheduler.residency(entry.runs_on)

    async def deployed(self) -> None:
        """Scale every model to the instances that the stored deployments require."""
        self.instances.deployed(await self._store.registry.deployments())
        self.decide()

    def limit(self, limits: LimitsConfig, policy: Policy) -> None:
        """Apply new limits and priorities; running predictions keep their run timeout."""
        self._dependencies.limits, self._dependencies.policy = limits, policy

    def reconcile(self, demands: Iterable[Demand], before: Mapping[str, ServedVersion]) -> None:
        """Apply an edited models.yaml, whose models are already in the catalogue.

        Predictions that run, or wait for a loaded model, finish on the version that they were created for.
        Predictions that wait for a replaced version fail if that version will not be loaded again.
        """
        changed = reconcile(self._scheduler, self._catalogue, self.instances, demands, before)
        for entry in changed:
            self._memory_profiles.reset(entry)
        for entry in self._catalogue.entries:
            if entry not in changed:  # those are outdated, and are reloaded when they are needed
                self._loads.reload_instances(entry.runs_on)
        self.nodes.weights_changed()
        self._predictions.end_outdated()
        self.decide()

    async def load(self, entry: ServedVersion) -> None:
        """Load the model as soon as memory allows; return when the model is ready.

        Raises:
            LoadFailed: the model could not be loaded.
        """
        self._scheduler.check_fits(entry.runs_on)
        if self._scheduler.residency(entry.runs_on) is not Residency.READY:
            ready = self._loads.ready(entry.runs_on)
            self._scheduler.request_load(entry.runs_on)
            self.decide()
            await asyncio.shield(ready)

    async def unload(self, entry: ServedVersion) -> None:
        """Unload every instance of the model once its predictions have ended; return at once."""
        for key in self.instances.keys(entry.runs_on):
            if self._scheduler.knows(key):
                self._scheduler.request_unload(key, "asked for", time.monotonic())
        self.decide()

    def pin(self, entry: ServedVersion, *, pinned: bool) -> None:
        """Pin the model (load it and never evict it) or unpin it, until the gateway stops.

        Raises:
            ModelTooLarge: no devices could hold the model beside the pinned models.
        """
        if pinned:
            self._scheduler.check_fits(entry.runs_on)
        self._scheduler.pin(entry.runs_on, pinned=pinned)
        self.decide()

    def status(self) -> SchedulerStatus:
        self._device_memory.refresh()
        entries = self._catalogue.entries
        models = [(entry, self.instances.keys(entry.runs_on)) for entry in entries]
        return report.status(self._scheduler, models, self._loads, draining=self._draining)

    def residency_report(self) -> ResidencyResponse:
        self._device_memory.refresh()
        return report.residency(self._scheduler)
