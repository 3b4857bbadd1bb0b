"""The doors of the engine: every prediction enters through ``submit`` and is read through the others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import msgspec

from appliance.cluster.base import Adopted, Cluster
from appliance.config import LimitsConfig
from appliance.domain import input_schema
from appliance.domain.errors import InvalidVersion, NotFound, RequestError, ShuttingDown, StoreError
from appliance.domain.prediction import Prediction, Status, Webhook, new_id, new_stream_token
from appliance.domain.token import RunTokens
from appliance.gateway.catalogue.catalogue import Catalogue, Entry, operating
from appliance.gateway.engine import report
from appliance.gateway.engine.active import HIDDEN, Seen, follow, items, without_secrets
from appliance.gateway.engine.admission import Admission
from appliance.gateway.engine.device_memory import DeviceMemory
from appliance.gateway.engine.instances import Instances
from appliance.gateway.engine.loads import Loads
from appliance.gateway.engine.loop import INTERRUPTED, Loop
from appliance.gateway.engine.memory_profiles import MemoryProfiles
from appliance.gateway.engine.queue_info import shown
from appliance.gateway.engine.reconcile import renew
from appliance.gateway.files.file_store import FileStore
from appliance.gateway.files.inputs import Inputs
from appliance.machine import Device
from appliance.scheduler import Demand, Event, Residency, Scheduler
from appliance.store import Cursor, Filter, Store

_log = logging.getLogger(__name__)


Ids = list[str]  # named here because the method ``list`` hides the builtin


class Engine:
    """One per gateway; used on its event loop only."""

    def __init__(
        self,
        *,
        limits: LimitsConfig,
        catalogue: Catalogue,
        store: Store,
        cluster: Cluster,
        scheduler: Scheduler,
        home: Path,
        threads: int,
        devices: Sequence[Device],
        in_use: Callable[[], dict[str, int]],
        files: FileStore,
        inputs: Inputs,
        run_tokens: RunTokens,
        observe: Callable[[Prediction], None],
        on_event: Callable[[Event], None],
        finalize: Callable[[Prediction], Awaitable[Prediction]],
    ) -> None:
        """``home`` is the data folder, ``threads`` and ``devices`` what the machine has, ``in_use``
        says how many bytes of each device anybody uses now, as far as that is known.

        ``observe`` is told of every change of a prediction, after its status is stored, ``on_event`` of every
        decision about memory and what came of it; ``finalize`` makes a version of what a training has made,
        before its end is stored.
        """
        self._catalogue = catalogue
        self._store = store
        self._cluster = cluster
        self._scheduler = scheduler
        kinds = {device.name: device.kind for device in devices}
        self._sizes = MemoryProfiles(catalogue, scheduler, cluster, store, kinds)
        self._loads = Loads(
            catalogue, cluster, scheduler, limits, self._sizes, home=home, threads=threads, devices=devices
        )
        self._room = DeviceMemory(scheduler, in_use, kinds)
        self._instances = Instances(catalogue, scheduler)
        self._started = False
        self._loop = Loop(
            limits=limits,
            catalogue=catalogue,
            store=store,
            cluster=cluster,
            scheduler=scheduler,
            loads=self._loads,
            sizes=self._sizes,
            room=self._room,
            files=files,
            inputs=inputs,
            run_tokens=run_tokens,
            observe=observe,
            on_event=on_event,
            finalize=finalize,
        )
        self._admission = Admission(limits, scheduler, self._loop.live)

    async def start(self) -> None:
        """Take up what an earlier gateway left, then begin to decide."""
        await self._sizes.load()
        held = await self._adopt(await self._cluster.adopt())
        for prediction in await self._store.unfinished():
            self._recover(prediction, held)
        for model in held:
            self._loop.hosts.follow(model)
        self._started = True
        self._loop.start()

    async def submit(
        self,
        entry: Entry,
        input: Any,
        *,
        owner: str,
        deadline: float | None = None,
        webhook: Webhook | None = None,
        deployment: str | None = None,
        destination: str | None = None,
        parent: str | None = None,
        operation: str | None = None,
        token: str | None = None,
        trace: str | None = None,
    ) -> Prediction:
        """Accept a prediction: it is committed when this returns. ``deadline`` is in Unix seconds.

        With ``destination`` it is a training, and ``entry`` a trainer. ``parent`` is the running prediction
        that asks for it. With ``operation`` the input is a request of another API, an object, and ``entry``
        one of a kind that answers it. ``token`` is the id of the token that asks, ``trace`` the
        traceparent of its request; a part has those of its whole.

        Raises:
            Unauthenticated: ``parent`` does not run any more.
            InvalidInput: names every wrong field.
            NeverFits: no device could hold the model.
            Throttled: too many predictions wait.
            ShuttingDown: the appliance is draining.
        """
        if operation is not None:
            entry = operating(entry, input)
        validated = input_schema.validate(entry.interface, input)
        if self._loop.draining and parent is None:
            raise ShuttingDown
        self._place(entry)
        self._scheduler.check_fits(entry.runs_on)
        entry = self._instances.choose(entry)
        if parent is None:
            self._admission.check(entry.runs_on)
        else:
            whole = self._admission.check_part(parent)
            token, trace = whole.token, whole.trace
        prediction = Prediction(
            id=new_id(),
            model=entry.name,
            version=entry.version,
            owner=owner,
            input=without_secrets(entry, input),
            created_at=round(time.time(), 6),  # as precise as it is shown, so that callers can filter by it
            deadline=deadline,
            webhook=webhook,
            stream_token=new_stream_token(files=entry.files_out),
            deployment=deployment,
            destination=destination,
            parent=parent,
            operation=operation,
            token=token,
            trace=trace,
        )
        if parent is not None:
            _log.info("prediction %s asks for %s", prediction, entry.name)
        # Writes keep their order, so the claim may be queued before the creation is committed; nobody
        # knows the id until this returns.
        created = self._store.create(prediction)
        live = self._loop.admit(prediction, entry, validated)
        self._loop.decide()
        try:
            await created
        except StoreError:
            self._loop.forget(live)
            raise
        return prediction

    async def get(self, id: str, owner: str | None) -> Prediction:
        """The record as it is now; with no ``owner``, whoever's it is.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        live = self._loop.live.get(id)
        prediction = shown(live, self._scheduler) if live is not None else await self._store.get(id)
        if prediction is None or owner not in {None, prediction.owner}:
            raise NotFound
        return prediction

    async def list(
        self,
        owner: str | None,
        *,
        cursor: Cursor | None = None,
        limit: int = 100,
        **filters: Unpack[Filter],
    ) -> Sequence[Prediction]:
        """One page, newest first, with running predictions as they are now; see ``Store.list``.

        Raises:
            NotFound: there is no prediction ``parent`` of this owner's.
        """
        parent = filters.get("parent")
        if parent is not None:  # its parts are younger: that leaves little to look through
            since = (await self.get(parent, owner)).created_at
            filters["created_after"] = max(filters.get("created_after") or since, since)
        stored = await self._store.list(owner, cursor=cursor, limit=limit, **filters)
        live = self._loop.live
        return [shown(live[each.id], self._scheduler) if each.id in live else each for each in stored]

    async def parts(self, record: Prediction) -> Ids:
        """The ids of what a prediction has asked for while it ran, oldest first."""
        return await self._store.parts(record.id)

    async def cancel(self, id: str, owner: str | None) -> Prediction:
        """Cancel it if it is not finished; returns the record either way.

        Raises:
            NotFound: there is none, or it is another owner's.
        """
        prediction = await self.get(id, owner)
        live = self._loop.live.get(id)
        if live is None:
            return prediction
        if not live.ending:
            self._loop.end(live, Status.CANCELED)
        await live.ended()
        return live.prediction

    async def wait(self, id: str, seconds: float) -> Prediction | None:
        """The record once it is terminal, or as it is after ``seconds``; None if it is not known here."""
        live = self._loop.live.get(id)
        if live is None:
            return await self._store.get(id)
        try:
            async with asyncio.timeout(seconds):
                await live.ended()
        except TimeoutError:
            pass
        return live.prediction

    async def follow(
        self, prediction: Prediction, after: int = 0, *, idle: float = 10.0
    ) -> AsyncIterator[Seen]:
        """Output items with a number over ``after`` (from 1), each once; then the terminal record.

        What is there comes in one list; None says that nothing came for ``idle`` seconds.
        """
        live = self._loop.live.get(prediction.id)
        if live is not None:
            async for seen in follow(live, after, idle):
                yield seen
            return
        stored = await self._store.get(prediction.id)
        if stored is None:
            raise NotFound
        present = items(stored, iterates=self._iterates(stored))[after:]
        if present:
            yield list(enumerate(present, after + 1))
        yield stored

    def item_count(self, prediction: Prediction) -> int:
        """How many items a follower of this terminal prediction has seen."""
        return len(items(prediction, iterates=self._iterates(prediction)))

    def residency(self, entry: Entry) -> Residency:
        """Where the model is now."""
        return self._scheduler.residency(entry.runs_on)

    def running(self, id: str, attempt: int) -> Prediction | None:
        """The record of a prediction if this attempt of it runs now."""
        live = self._loop.live.get(id)
        if live is None or live.ending or live.prediction.status is not Status.PROCESSING:
            return None
        return live.prediction if live.prediction.attempt == attempt else None

    def uses(self, version: str) -> bool:
        """Whether predictions of this version are under way."""
        return any(live.prediction.version == version for live in self._loop.live.values())

    async def deployed(self) -> None:
        """Give every model the instances that its deployments ask for, as they are stored."""
        self._instances.deployed(await self._store.registry.deployments())
        if self._started:
            self._loop.decide()

    def limit(self, limits: LimitsConfig) -> None:
        """These hold from now on; a prediction that runs keeps the time it had."""
        self._admission.limits = self._loop.limits = self._loads.limits = limits

    def renew(self, demands: Iterable[Demand], before: Mapping[str, Entry]) -> None:
        """The catalogue has the models of an edited models.yaml: see ``renewal.renew``.

        What runs ends on what it began with, and what waits for a model that is loaded does too. What waits
        for one that is not, and will not be as it was, fails.
        """
        for entry in renew(self._scheduler, self._catalogue, self._instances, demands, before):
            self._sizes.renewed(entry)
        self._loop.end_outdated()
        self._loop.decide()

    def _iterates(self, stored: Prediction) -> bool:
        """Whether its output came item by item; of a version that is gone, a list is taken for a yes."""
        try:
            return self._served(stored).interface.iterates
        except InvalidVersion:
            return isinstance(stored.output, list)

    async def load(self, entry: Entry) -> None:
        """Load the model when there is room; returns when it is ready.

        Raises:
            LoadFailed: it could not be loaded.
        """
        self._scheduler.check_fits(entry.runs_on)
        if self._scheduler.residency(entry.runs_on) is not Residency.READY:
            ready = asyncio.ensure_future(self._loads.ready(entry.runs_on))
            self._scheduler.wanted(entry.runs_on)
            self._loop.decide()
            await ready

    async def unload(self, entry: Entry) -> None:
        """Unload the model once what runs on it is done; returns at once."""
        for key in self._instances.keys(entry.runs_on):
            if self._scheduler.knows(key):
                self._scheduler.unwanted(key, "asked for", time.monotonic())
        self._loop.decide()

    def pin(self, entry: Entry, *, pinned: bool) -> None:
        """Load the model and never evict it, or let it be evicted, whatever models.yaml says, until the end.

        Raises:
            NeverFits: it is to be pinned, and no device could hold it beside what is pinned.
        """
        if pinned:
            self._scheduler.check_fits(entry.runs_on)
        self._scheduler.pin(entry.runs_on, pinned=pinned)
        self._loop.decide()

    def status(self) -> dict[str, Any]:
        """Models and devices as they are now, for people and for `/admin/status`."""
        self._room.refresh()
        entries = self._catalogue.entries
        models = [(entry, self._instances.keys(entry.runs_on)) for entry in entries]
        return {"draining": self._loop.draining, **report.status(self._scheduler, models)}

    def residency_report(self) -> dict[str, Any]:
        """Where every model is and why, for `/admin/residency`; see ``report.residency``."""
        self._room.refresh()
        return report.residency(self._scheduler)

    @property
    def problem(self) -> str | None:
        """Why no new work is taken; None if it is."""
        return self._loop.problem

    async def drain(self, seconds: float) -> int:
        """Take no new work and let what runs finish for ``seconds``; returns how many were still running.

        What still waits or runs stays stored and is taken up at the next start.
        """
        self._loop.draining = True
        running = [live.ended() for live in self._loop.live.values() if live.claimed]
        if not running:
            return 0
        tasks = [asyncio.ensure_future(wait) for wait in running]
        _, unfinished = await asyncio.wait(tasks, timeout=seconds)
        for task in unfinished:
            task.cancel()
        return len(unfinished)

    async def _adopt(self, found: Sequence[Adopted]) -> dict[str, frozenset[str]]:
        """Keep the loaded models that are still configured as they are; returns the ids each holds."""
        held: dict[str, frozenset[str]] = {}
        for adopted in found:
            spec = adopted.spec
            if not await self._loads.adopt(adopted):
                continue
            self._sizes.adopted(spec.model)
            held[spec.model] = adopted.held
            _log.info("model %s is still loaded, with %d predictions", spec.model, len(adopted.held))
        return held

    def _recover(self, prediction: Prediction, held: dict[str, frozenset[str]]) -> None:
        """Queue again, attach again, or end what an earlier gateway accepted."""
        try:
            entry = self._served(prediction)
            self._place(entry)
            entry = self._on_its_instance(entry, prediction.id, held)
            validated = input_schema.validate(entry.interface, prediction.input)
        except RequestError:
            reason = f"version {prediction.version} of {prediction.model} is no longer served here"
            record = prediction.finished(Status.FAILED, time.time(), f"{INTERRUPTED}: {reason}")
            self._loop.spawn(self._loop.end_unserved(record))
            return
        if any(prediction.input.get(name) == HIDDEN for name in entry.interface.secret_inputs):
            reason = "its secret input was kept in memory only, and the appliance was stopped"
            record = prediction.finished(Status.FAILED, time.time(), f"{INTERRUPTED}: {reason}")
            self._loop.spawn(self._loop.end_unserved(record))
            return
        waiting = prediction.status is Status.STARTING
        live = self._loop.admit(prediction, entry, validated, queue=waiting)
        if waiting:
            return
        live.claimed = True
        if prediction.id in held.get(entry.runs_on, ()):
            live.submitted = True
            whole = prediction.parent if prediction.parent in self._loop.live else None
            self._scheduler.resumed(prediction.id, entry.runs_on, whole)
            self._loop.limit_run(live)
        else:
            self._loop.retry_or_fail(live, "the appliance was stopped while it ran")

    def _place(self, entry: Entry) -> None:
        """Let the scheduler know of a version that is loaded apart from its base: it takes as much.

        Raises:
            InvalidVersion: a reload has replaced it since it was looked up.
        """
        if self._scheduler.knows(entry.runs_on):
            if not self._catalogue.serves(entry):
                raise InvalidVersion
        elif not self._scheduler.knows(entry.model.name):
            raise InvalidVersion
        else:
            self._catalogue.host(entry)
            base = self._scheduler.demand(entry.model.name)
            self._scheduler.add(msgspec.structs.replace(base, model=entry.runs_on, pin=False, preload=False))
        self._sizes.recall(entry)

    def _on_its_instance(self, entry: Entry, id: str, held: dict[str, frozenset[str]]) -> Entry:
        """``entry`` on the instance that still holds this prediction, or on one that has time for it."""
        for key in self._instances.keys(entry.runs_on):
            if id in held.get(key, ()):
                return msgspec.structs.replace(entry, runs_on=key)
        return self._instances.choose(entry)

    def _served(self, prediction: Prediction) -> Entry:
        """What runs it.

        Raises:
            InvalidVersion: nothing does any more.
        """
        if prediction.destination is None:
            entry = self._catalogue.by_version(prediction.version)
            return entry if prediction.operation is None else operating(entry, prediction.input)
        trainer = self._catalogue.trainer(prediction.version)
        if trainer is None:
            raise InvalidVersion
        return trainer

    async def close(self) -> None:
        """Stop deciding and write what is not written yet."""
        await self._loop.close()
