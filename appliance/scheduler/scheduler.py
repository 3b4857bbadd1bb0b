"""The scheduler decides which predictions start, and which models are loaded, put to sleep or unloaded.

The engine reports events (``queued``, ``finished``, ``loaded``, ...) and then asks ``decide`` what to do.
Nothing here does I/O, reads a clock or awaits. Times are seconds on any one monotonic clock, and are passed
in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from appliance.scheduler import policy
from appliance.scheduler.deadlock import completable_predictions, explain_deadlock
from appliance.scheduler.event_log import EventKind
from appliance.scheduler.facts import Capacity, Decision, Demand, Owner, Refuse, Residency, SleepLevel, Start
from appliance.scheduler.model import CHANGED, ModelState
from appliance.scheduler.queries import SchedulerQueries
from appliance.scheduler.rebalancing import QueuedPrediction

_READY_OR_COMING: Final = frozenset({Residency.LOADING, Residency.WAKING, Residency.READY})
_COLD_OR_ASLEEP: Final = frozenset({Residency.COLD, Residency.FALLING_ASLEEP, Residency.ASLEEP})

#: While models wait to be loaded, ``decide`` is called again after this many seconds.
RECHECK_INTERVAL: Final = 1.0


class Scheduler(SchedulerQueries):
    """Decides for all models and devices of one machine, or of all nodes of a cluster."""

    # -- models ------------------------------------------------------------------------------------------

    def add(self, demand: Demand) -> None:
        """Add a model; do nothing if the model is known."""
        if demand.model not in self._models:
            self._models[demand.model] = self._index.new(demand)

    def update(self, demand: Demand, now: float, *, replace: bool) -> None:
        """Add a model or change its demand.

        With ``replace`` the loaded model is outdated (for example because of other options): its running and
        queued predictions finish, then the model is unloaded, and loaded again with the new demand.
        """
        entry = self._models.get(demand.model)
        if entry is None:
            self.add(demand)
            return
        entry.mark_changed()
        before, entry.removed = entry.next_demand or entry.demand, False
        if (demand.pin and not before.pin) or (demand.preload and not before.preload):
            entry.wanted = entry.state not in _READY_OR_COMING
        entry.blocked_until = 0.0
        if replace and entry.devices:
            entry.next_demand = demand
            self._replace(entry, now)
        elif entry.next_demand is not None:
            entry.next_demand = demand
        elif replace:
            entry.next_demand = demand
            entry.apply_next_demand()
        else:
            self.footprints.set_demand(entry, demand)

    def remove(self, model: str, now: float) -> None:
        """Forget a model once its running and queued predictions have finished."""
        entry = self._changing(model)
        entry.removed, entry.next_demand, entry.wanted, entry.keep_loaded = True, None, False, False
        if entry.devices:
            self._replace(entry, now)
        self._forget_if_removed(entry)

    def set_instances(self, instances: Sequence[str], used: int) -> None:
        """Set the instances of one model. Only the first ``used`` of them get new predictions."""
        self._rebalancing.set_instances(instances, used)
        self._locality.set_instances(instances)

    def keep_loaded(self, model: str, *, loaded: bool) -> None:
        """Pin the model for a deployment, or end that pin; the model's demand may still pin it."""
        entry = self._changing(model)
        entry.keep_loaded = loaded
        if loaded and entry.state in _COLD_OR_ASLEEP:
            entry.wanted = True

    def pin(self, model: str, *, pinned: bool) -> None:
        """Pin or unpin the model by hand; this overrides its demand."""
        entry = self._changing(model)
        entry.pin_override = pinned
        if entry.state is Residency.COLD:
            entry.wanted = entry.pinned

    def request_load(self, model: str) -> None:
        """Load the model as soon as memory allows, although no prediction waits for it."""
        entry = self._changing(model)
        entry.wanted = entry.state not in _READY_OR_COMING
        entry.blocked_until = 0.0
        entry.avoided.clear()
        entry.pending_unload = ""

    def request_unload(self, model: str, reason: str, now: float) -> None:
        """Unload the model once its running predictions have finished; later predictions load it again.

        A model that is being loaded or woken is unloaded afterwards, unless predictions are queued for it by
        then.
        """
        entry = self._changing(model)
        entry.wanted = False
        if entry.state is Residency.READY:
            self._transitions.drain(entry, reason, now)
        elif entry.state is Residency.DRAINING:
            entry.sleep_after_drain = False
        elif entry.devices and entry.state is not Residency.UNLOADING:
            entry.pending_unload = reason

    def _changing(self, model: str) -> ModelState:
        """Return a model whose attributes are about to change."""
        entry = self._models[model]
        entry.mark_changed()
        return entry

    def _replace(self, entry: ModelState, now: float) -> None:
        entry.mark_outdated()
        if entry.state is Residency.READY:
            self._transitions.drain(entry, CHANGED, now)

    def _forget_if_removed(self, entry: ModelState) -> None:
        if entry.removed and entry.state is Residency.COLD and not entry.queue:
            self._models.pop(entry.name, None)
            self._index.removed(entry)
            self._locality.forget(entry.name)

    # -- nodes of a cluster ------------------------------------------------------------------------------

    def add_devices(self, capacities: Iterable[Capacity]) -> None:
        """Add the devices of a node that has joined.

        Raises:
            ValueError: A device with this name exists, or models on the removed node with this name have not
                been reported with ``lost`` yet.
        """
        self._ledger.add(capacities)

    def remove_devices(self, node: str) -> list[str]:
        """Remove the devices of a lost node; return the models that hold memory there.

        A model on several nodes is returned only when the first of its nodes is removed. Call ``lost`` for
        each of the returned models. Until then nothing is decided about them, and none of them starts a
        prediction.
        """
        return self._node_changes.remove(node)

    def drain_node(self, node: str) -> None:
        """Load no more models on the node; unload its models when their running predictions have finished.

        Models are loaded on other nodes when predictions wait for them, and pinned models at once, one after
        the other. Pinned models that fit on no other node stay: ``models_on_node`` returns why.
        """
        self._node_changes.drain(node)

    def undrain_node(self, node: str) -> None:
        """Make the node schedulable again."""
        self._node_changes.undrain(node)

    def set_weights(self, model: str, size: int, nodes: Iterable[str]) -> None:
        """Set the bytes of a model's weights, and the nodes that have all of them.

        A load on another node is expected to take longer, because the weights are copied first.
        """
        self._locality.set_weights(model, size, nodes)

    def weights_copied(self, model: str, node: str, copied: int, seconds: float) -> None:
        """Record that a node has the weights now, after a copy of ``copied`` bytes that took ``seconds``.

        Call this before ``loaded``: the time of the copy does not count as the duration of the load.
        """
        self._locality.weights_copied(model, node, copied, seconds)
        entry = self._models.get(model)
        if entry is not None and entry.state is Residency.LOADING:
            entry.copy_seconds = seconds

    def weights_deleted(self, model: str, node: str) -> None:
        """Record that a node has deleted its copy of a model's weights."""
        self._locality.weights_deleted(model, node)

    # -- facts about predictions -------------------------------------------------------------------------

    def queued(
        self,
        id: str,
        model: str,
        now: float,
        *,
        front: bool = False,
        alone: bool = False,
        parent: str | None = None,
        owner: Owner | None = None,
    ) -> None:
        """Queue a prediction for its model; ``front`` puts one that runs again before all others.

        Owners share the model fairly, see ``FairQueue``.
        While a prediction is ``alone``, the model runs one prediction at a time. ``parent`` is the id of the
        parent prediction. Children are queued before others: their parent holds a slot while it waits.
        """
        entry = self._models[model]
        self._children.add(id, parent)
        position = None if parent is None else sum(each in self._children for each in entry.queue)
        owner = owner or Owner()
        entry.enqueue(id, now, owner, position=0 if front else position, again=front, alone=alone)
        self._queued[id] = QueuedPrediction(model, now, owner)

    def withdrawn(self, id: str) -> bool:
        """Remove a queued prediction; return False if the prediction was not queued."""
        queued = self._queued.pop(id, None)
        if queued is None:
            return False
        entry = self._models[queued.model]
        entry.dequeue(id)
        self._children.remove(id)
        self._forget_if_removed(entry)
        return True

    def finished(self, id: str, model: str, now: float) -> None:
        """Free the slot of a prediction that has left its worker process."""
        entry = self._models.get(model)
        if entry is not None:
            first = not entry.ran_once
            entry.finish(id, now)
            if first:  # lower peaks count only after a first prediction
                self.footprints.record_peak(model, 0, now)
        self._children.remove(id)

    def resumed(self, id: str, model: str, parent: str | None) -> None:
        """Give a slot to a prediction that still runs on an adopted model."""
        self._changing(model).running.add(id)
        self._children.add(id, parent)

    # -- facts about models and devices ------------------------------------------------------------------

    def loaded(self, model: str, now: float, levels: Iterable[SleepLevel]) -> None:
        """Mark the model loaded; ``levels`` are the sleep levels that its worker process supports."""
        entry = self._changing(model)
        self._transitions.loaded(entry, frozenset(levels), now)
        self._unload_if_pending(entry, now)

    def load_failed(self, model: str, now: float, reason: str) -> list[str]:
        """Mark a load as failed; remove the predictions queued for the model and return their ids.

        If another instance of the model is ready, the predictions move there instead.
        """
        entry = self._changing(model)
        entry.failures += 1
        entry.blocked_until = now + policy.backoff(entry.failures)
        entry.wanted = entry.pinned
        self._rebalancing.move_to_ready_instance(entry, now)
        ids = list(entry.queue)
        for id in ids:
            self.withdrawn(id)
        self._gone(entry, EventKind.FAILED, now, reason=reason)
        return ids

    def avoid_node(self, model: str, node: str, now: float) -> bool:
        """Load the model on other nodes for some time, because the node made its load fail.

        Returns whether another node is large enough for the model. Call ``lost`` or ``load_failed`` too.
        """
        entry = self._changing(model)
        failures = entry.avoided.get(node, (0, 0.0))[0] + 1
        entry.avoided[node] = failures, now + policy.backoff(failures)
        return self._ledger.fits(entry, draining=False, without=entry.avoided_nodes(now))

    def asleep(self, model: str, now: float) -> None:
        self._transitions.asleep(self._models[model], now)

    def woken(self, model: str, now: float) -> None:
        entry = self._changing(model)
        self._transitions.woken(entry, now)
        self._unload_if_pending(entry, now)

    def sleep_failed(self, model: str) -> None:
        """Disable sleep for the model, because it failed to sleep or to wake."""
        self._changing(model).sleep_enabled = False

    def stopping(self, model: str, now: float, reason: str) -> None:
        """Mark a model whose worker process is being killed; its memory is still in use."""
        self._transitions.stop(self._models[model], reason, now)

    def unloaded(self, model: str, now: float) -> None:
        """Free the memory of a model whose worker process has ended as decided."""
        self._gone(self._models[model], EventKind.UNLOADED, now)

    def lost(self, model: str, now: float, reason: str) -> None:
        """Free the memory and slots of a model whose worker process died; its queue remains."""
        entry = self._models[model]
        for id in entry.running:
            self._children.remove(id)
        entry.lose_running()
        self._gone(entry, EventKind.LOST, now, reason=reason)

    def adopted(
        self,
        model: str,
        devices: tuple[str, ...],
        memory: int,
        now: float,
        *,
        levels: Iterable[SleepLevel],
        level: SleepLevel | None,
    ) -> None:
        """Mark a model as loaded by an earlier gateway process; with ``level`` the model is asleep."""
        entry = self._changing(model)
        self._transitions.adopt(entry, devices, memory, frozenset(levels), now)
        entry.ran_once = True  # a prediction may have run under the earlier gateway process
        if level is not None:
            self._transitions.sleep(entry, level, "asleep since before the gateway started", now)
            self._transitions.asleep(entry, now)

    def device_used(self, device: str, memory: int, now: float) -> None:
        """Record how many bytes of a device are in use by models and other programs."""
        if device not in self._ledger.capacities:  # measured before its node was removed
            return
        if self._ledger.record_use(device, memory):
            self._event_log.add(now, EventKind.FOREIGN, "", (device,), self._ledger.foreign(device))

    def _unload_if_pending(self, entry: ModelState, now: float) -> None:
        """Drain a model that has become ready, if it is outdated or its unload was requested."""
        if entry.outdated:
            self._transitions.drain(entry, CHANGED, now)
        elif entry.pending_unload and not entry.queue:
            self._transitions.drain(entry, entry.pending_unload, now)
        entry.pending_unload = ""

    def _gone(self, entry: ModelState, kind: EventKind, now: float, *, reason: str = "") -> None:
        entry.mark_changed()
        self._transitions.gone(entry, kind, now, reason=reason)
        self.footprints.end_measurement(entry)
        if entry.next_demand is not None:  # load it again, unless it left for another model
            entry.wanted = entry.wanted or entry.drained_for is None
        entry.apply_next_demand()
        self._forget_if_removed(entry)

    # -- decisions ---------------------------------------------------------------------------------------

    def decide(self, now: float, *, children_only: bool = False) -> list[Decision]:
        """Return what to do now. The caller must carry out every decision, in this order.

        With ``children_only`` only children start, because running predictions may wait for them.
        """
        decisions: list[Decision] = []
        for entry in self._index.take_startable(keep=children_only):
            decisions += self._starts(entry, now, children_only=children_only)
        for entry in self._rebalancing.fill_free_slots(now, self._children, children_only=children_only):
            decisions += self._starts(entry, now, children_only=children_only)
        decisions += self._refuse_deadlocked()
        if children_only:
            return decisions + self._placements.load_for_children(now)
        devices_without_new_loads: set[str] = set()
        decisions += self._departures(now, devices_without_new_loads)
        self._rebalancing.load_more_instances(now, self.fits_now)
        decisions += self._placements.decide(now, devices_without_new_loads)
        return decisions

    def start_queued(self, model: str, now: float) -> list[Start]:
        """Return the starts that are possible now for one model. This is faster than ``decide``.

        If the list is empty, call ``decide``, because the model may have to be loaded.
        """
        return self._starts(self._models[model], now, children_only=False)

    @property
    def nothing_waits(self) -> bool:
        """Whether no prediction is queued and no model is about to change its state."""
        return not self._queued and self._index.all_stable

    def _starts(self, entry: ModelState, now: float, *, children_only: bool) -> list[Start]:
        starts: list[Start] = []
        while entry.free_slots:
            id = entry.next_to_start(now)
            if id is None or (children_only and id not in self._children):
                break
            entry.start(id, now)
            cold_start = entry.cold_start(self._queued.pop(id).since)
            starts.append(Start(id, entry.name, entry.devices, cold_start))
        if not entry.queue:
            entry.waiting_since = None
        return starts

    def _refuse_deadlocked(self) -> list[Decision]:
        """Refuse children that could never start, because waiting parents hold the slots or memory they need.

        The newest child is refused first: without it, the others may be able to start.
        """
        refused: list[Decision] = []
        while any(id in self._queued for id in self._children):
            capacities = self._ledger.member_capacities
            completable = completable_predictions(self._models, self._children.unfinished, capacities)
            stuck = [id for id in self._queued if id in self._children and id not in completable]
            if not stuck:
                break
            id = stuck[-1]
            entry = self._models[self._queued[id].model]
            reason = explain_deadlock(entry, self._models.values(), capacities, completable)
            refused.append(Refuse(id, reason))
            self.withdrawn(id)
        return refused

    def _departures(self, now: float, devices_without_new_loads: set[str]) -> list[Decision]:
        """Unload models, or put them to sleep, if they are drained, marked for unload or long idle.

        Adds the devices of drained models on several nodes to ``devices_without_new_loads`` if a load delays
        their unload.
        """
        decisions: list[Decision] = []
        self._node_changes.drain_models(now)
        for entry in self._index.departing(now):
            if not entry.devices or entry.node_removed:
                continue
            drained = entry.state is Residency.DRAINING and self._is_drained(entry, now)
            if not self._ledger.none_loading(entry.devices):
                if drained and entry.demand.machines > 1:
                    devices_without_new_loads.update(entry.devices)
                continue
            if entry.state is Residency.DRAINING:
                if drained:
                    waiter = self._models.get(entry.drained_for or "")
                    sleep = entry.sleep_after_drain
                    decisions += self._transitions.evict(entry, entry.drain_reason, now, waiter, sleep=sleep)
            elif entry.state is Residency.ASLEEP and entry.pending_unload:
                decisions.append(self._transitions.unload(entry, entry.pending_unload, now))
            elif entry.state in {Residency.READY, Residency.ASLEEP} and entry.idle and not entry.pinned:
                decisions += self._transitions.leave_if_idle(entry, now)
        return decisions

    def _is_drained(self, entry: ModelState, now: float) -> bool:
        return not entry.running and entry.next_to_start(now) is None

    def next_wakeup(self, now: float) -> float | None:
        """Return when to call ``decide`` next if nothing happens before; None for never."""
        times = self._index.next_times(now, RECHECK_INTERVAL, self._may_leave_now)
        times += self._placements.next_times(now)
        if self._rebalancing.could_load_more():
            times.append(now + RECHECK_INTERVAL)
        return min((at for at in times if at > now), default=None)

    def _may_leave_now(self, entry: ModelState) -> bool:
        return self._ledger.none_loading(entry.devices)
