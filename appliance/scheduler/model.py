"""State, queue and measurements of one model."""

from __future__ import annotations

from typing import Final

from appliance.scheduler.facts import ALLOWED_TRANSITIONS, Demand, Owner, Residency, SleepLevel
from appliance.scheduler.fair_queue import FairQueue

#: Logged as the reason to unload a model whose entry in models.yaml was changed.
CHANGED: Final = "models.yaml was changed"
#: Weight of the newest value in the moving averages.
NEWEST: Final = 0.2


def _averaged(before: float | None, value: float) -> float:
    return value if before is None else before + NEWEST * (value - before)


class ModelState:
    """Everything that the scheduler knows of one model. Only ``appliance.scheduler`` writes to it.

    Times are seconds on the scheduler's clock. Memory is in bytes.
    """

    def __init__(self, demand: Demand, number: int = 0, changed: set[ModelState] | None = None) -> None:
        """``number`` is the position of the model in the order of models.

        When an attribute changes that decisions depend on, the model adds itself to ``changed``.
        """
        self.number = number
        self._changed: set[ModelState] = set() if changed is None else changed
        self.demand = demand
        self.state = Residency.COLD
        self.state_since = 0.0

        # Predictions
        self.queue = FairQueue()
        self.running: set[str] = set()
        #: Queued and running predictions that run alone: one of them may have ended the worker process.
        self.alone: set[str] = set()
        self.started_at: dict[str, float] = {}  # by running prediction
        self.waiting_since: float | None = None  # when the queue began to wait for a load, or the drain began

        # Memory
        self.devices: tuple[str, ...] = ()  # on which memory is reserved for the model
        self.reserved = 0  # on each of its devices
        self.main_memory = 0  # reserved for its weights while it sleeps; not part of `reserved`
        self.claimed_devices: tuple[str, ...] = ()  # from which other models are being evicted
        self.estimated_demand = demand  # before anything was measured
        self.peak = 0  # highest measured use of one device since the model was loaded
        self.earlier_peak = 0  # of earlier loads, lowered by `end_measurement`
        self.ran_once = False  # whether a prediction has finished since the model was loaded
        self.exceeds = False  # whether the model uses more than models.yaml declares
        self.out_of_memory = 0  # how often its worker process ran out of memory
        self.node_removed = False  # its node was removed, and the engine has not called `Scheduler.lost` yet

        # Sleep
        self.sleep_level: SleepLevel | None = None  # set from FALLING_ASLEEP until READY
        self.sleep_levels: frozenset[SleepLevel] = frozenset()  # supported by its worker process
        self.sleep_enabled = True  # False after sleeping or waking has failed

        # Requested loads and unloads
        self.wanted = demand.pin or demand.preload  # load the model even if its queue is empty
        self.keep_loaded = False  # pinned, because a deployment needs a minimum number of instances
        self.pin_override: bool | None = None  # set by an operator; replaces `demand.pin`
        self.failures = 0  # failed loads in a row
        self.blocked_until = 0.0  # no load before this time, after a failed one
        #: By node: how many loads in a row the node made fail, and until when no other is tried there.
        self.avoided: dict[str, tuple[int, float]] = {}
        self.pending_unload = ""  # reason to unload the model at the end of the present state

        # Drain
        self.drain_reason = ""
        self.drained_for: str | None = None  # the model that the memory is freed for
        self.sleep_after_drain = False  # fall asleep instead of being unloaded, if the model can sleep
        self.drain_quota = 0  # number of queued predictions that may still start
        self.drain_quota_until = 0.0

        # Reload of models.yaml
        self.next_demand: Demand | None = None  # takes effect once the model is unloaded
        self.removed = False  # delete this object once the model is unloaded and its queue is empty
        #: Queued predictions that still run on the loaded model before `next_demand` takes effect.
        self.before_replacement: set[str] = set()

        # Measured times
        self.load_began: float | None = None  # of the last load or waking
        self.ready_since = 0.0
        self.last_used = 0.0
        self.last_arrival: float | None = None
        self.arrival_gap: float | None = None  # average between arrivals
        self.run_seconds: float | None = None  # average duration of a prediction
        self.load_seconds: float | None = None  # duration of the last load, without a copy of the weights
        self.copy_seconds = 0.0  # duration of the copy of the weights in the present load
        self.sleep_seconds: dict[SleepLevel, float] = {}  # the last duration of falling asleep
        self.wake_seconds: dict[SleepLevel, float] = {}  # the last duration of waking
        #: Seconds that falling asleep took. Reset to 0 when the model is READY again; kept if the sleeping
        #: model was unloaded.
        self.last_sleep_seconds = 0.0
        self.seconds_to_ready = 0.0  # `last_sleep_seconds` plus the duration of the load or of waking

    @property
    def name(self) -> str:
        """The model's name, with a suffix for further instances and for versions."""
        return self.demand.model

    @property
    def pinned(self) -> bool:
        pinned = self.demand.pin if self.pin_override is None else self.pin_override
        return not self.removed and (self.keep_loaded or pinned)

    @property
    def idle(self) -> bool:
        return not self.queue and not self.running

    @property
    def outdated(self) -> bool:
        """Whether the loaded model was changed in or removed from models.yaml after it was loaded."""
        return self.removed or self.next_demand is not None

    @property
    def free_slots(self) -> int:
        slots = 1 if self.alone else self.demand.concurrency
        if self.node_removed:
            return 0
        return max(0, slots - len(self.running))

    @property
    def can_sleep(self) -> bool:
        return self.demand.sleep_footprint is not None and self.sleep_enabled and bool(self.sleep_levels)

    @property
    def loadable(self) -> bool:
        settled = self.state in {Residency.COLD, Residency.ASLEEP}
        return settled and not self.pending_unload and not self.node_removed

    @property
    def expected_peak(self) -> int:
        """Most bytes of one device that the model is expected to use; 0 if nothing was measured."""
        return max(self.peak, self.earlier_peak)

    def wants_load(self, now: float) -> bool:
        """Whether the model should be loaded or woken as soon as memory allows."""
        return self.loadable and (bool(self.queue) or self.wanted) and now >= self.blocked_until

    def avoided_nodes(self, now: float) -> set[str]:
        """Return the nodes that made a load of the model fail a short time ago."""
        return {node for node, (_, until) in self.avoided.items() if now < until}

    def waited(self, now: float) -> float:
        """Return how many seconds the queue has waited for a load. A drain sets the time back to 0."""
        return 0.0 if self.waiting_since is None else now - self.waiting_since

    def cold_start(self, queued_at: float) -> float:
        """Return how many seconds a prediction queued at ``queued_at`` waited for the last load or wake.

        The model must be ready.
        """
        if self.load_began is None:  # an earlier gateway process loaded it
            return 0.0
        return max(0.0, self.ready_since - max(queued_at, self.load_began))

    def loading_seconds(self, now: float) -> float | None:
        """Return for how long the model has been loading or waking; None in other states."""
        if self.state not in {Residency.LOADING, Residency.WAKING} or self.load_began is None:
            return None
        return now - self.load_began

    def next_to_start(self, now: float) -> str | None:
        """Return the id of the prediction to start when a slot is free; None if none may start."""
        if not self.queue:
            return None
        if self.state is Residency.READY:
            return self.queue.first
        if self.state is not Residency.DRAINING:
            return None
        if self.outdated:
            return next((id for id in self.queue if id in self.before_replacement), None)
        return self.queue.first if self.drain_quota > 0 and now < self.drain_quota_until else None

    # -- changes -----------------------------------------------------------------------------------------

    def mark_changed(self) -> None:
        """Make the next decision consider the model. Call this after each change of its attributes."""
        self._changed.add(self)

    def transition_to(self, state: Residency, now: float) -> float:
        assert state in ALLOWED_TRANSITIONS[self.state], (
            f"model {self.name} is {self.state} and cannot become {state}"
        )
        before = now - self.state_since
        self.state, self.state_since = state, now
        self.mark_changed()
        return before

    def record_arrival(self, now: float) -> None:
        if self.last_arrival is not None:
            self.arrival_gap = _averaged(self.arrival_gap, now - self.last_arrival)
        self.last_arrival = now

    def enqueue(
        self, id: str, now: float, owner: Owner, *, position: int | None, again: bool, alone: bool
    ) -> None:
        """Queue a prediction at ``position``; None: at its fair place. ``again``: it was queued before."""
        self.mark_changed()
        if alone:
            self.alone.add(id)
        if not again:
            self.record_arrival(now)
        if position is None:
            self.queue.add(id, owner.account, owner.priority)
        else:
            self.queue.insert(position, id)
        if self.waiting_since is None:
            self.waiting_since = now

    def dequeue(self, id: str) -> None:
        self.mark_changed()
        self.queue.remove(id)
        self.alone.discard(id)
        self.before_replacement.discard(id)
        if not self.queue:
            self.waiting_since = None
            self.claimed_devices = ()

    def start(self, id: str, now: float) -> None:
        self.mark_changed()
        self.queue.start(id)
        self.before_replacement.discard(id)
        self.drain_quota -= self.state is Residency.DRAINING
        self.running.add(id)
        self.started_at[id] = now

    def finish(self, id: str, now: float) -> None:
        self.mark_changed()
        self.running.discard(id)
        self.alone.discard(id)
        self.last_used = now
        self.ran_once = True
        started_at = self.started_at.pop(id, None)
        if started_at is not None:
            self.run_seconds = _averaged(self.run_seconds, now - started_at)

    def lose_running(self) -> None:
        """Free all slots, because the worker process died."""
        self.mark_changed()
        self.alone -= self.running
        self.running.clear()
        self.started_at.clear()
        self.wanted = self.wanted or self.pinned

    def mark_outdated(self) -> None:
        """Let the queued predictions run on the loaded model before it is replaced or removed."""
        if self.state is not Residency.UNLOADING:
            self.before_replacement.update(self.queue)
        self.sleep_after_drain = False
        if self.state in {Residency.FALLING_ASLEEP, Residency.ASLEEP}:
            self.pending_unload = CHANGED
            self.before_replacement.clear()  # these run on the new version, so the old one is not woken

    def apply_next_demand(self) -> None:
        """Make ``next_demand`` the demand. The model must be unloaded."""
        self.before_replacement.clear()
        if self.next_demand is not None:
            self.demand = self.estimated_demand = self.next_demand
            self.next_demand = None
            # Measured with other weights or options.
            self.peak = self.earlier_peak = self.out_of_memory = 0

    def end_measurement(self) -> None:
        """Merge the peak of the load that has just ended into ``earlier_peak``.

        A higher peak replaces ``earlier_peak``. A lower one moves ``earlier_peak`` half of the way down, so
        one large prediction does not reserve memory for ever.
        """
        if self.ran_once and self.peak:
            self.earlier_peak = max(self.peak, (self.earlier_peak + self.peak) // 2)
        self.peak, self.ran_once, self.exceeds = 0, False, False
