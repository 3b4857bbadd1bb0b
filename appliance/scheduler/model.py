"""Everything that the scheduler knows of one model."""

from __future__ import annotations

from collections import deque
from typing import Final

from appliance.scheduler.facts import ALLOWED_TRANSITIONS, Demand, Residency, SleepLevel

#: The reason in the log for unloading a model that a reload has changed.
CHANGED: Final = "models.yaml was changed"
#: Weight of the newest value in the moving averages.
NEWEST: Final = 0.2


def _averaged(before: float | None, value: float) -> float:
    return value if before is None else before + NEWEST * (value - before)


class ModelState:
    """State, queue and measurements of one model; only the scheduler and its parts write them.

    Times are on the scheduler's clock, in seconds; memory is in bytes.
    """

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.state = Residency.COLD
        self.state_since = 0.0

        # Predictions
        self.queue: deque[str] = deque()
        self.running: set[str] = set()
        self.started_at: dict[str, float] = {}  # by running prediction
        self.waiting_since: float | None = None  # when its queue began to wait for a load, or a drain began

        # Memory
        self.devices: tuple[str, ...] = ()  # that hold the model, or are reserved for it
        self.reserved = 0  # on each of its devices
        self.main_memory = 0  # for its weights while it sleeps; not counted in `reserved`
        self.claimed_devices: tuple[str, ...] = ()  # being cleared for it, because it has waited long
        self.estimated_demand = demand  # before anything was measured
        self.peak = 0  # highest use of one device since the model was loaded
        self.earlier_peak = 0  # the same of earlier loads; it decays: see `end_measurement`
        self.ran_once = False  # whether a prediction has finished since the model was loaded
        self.exceeds = False  # it takes more than models.yaml declares, and the event log says so
        self.out_of_memory = 0  # how often its worker process ran out of memory

        # Sleep
        self.sleep_level: SleepLevel | None = None  # set from FALLING_ASLEEP until it is READY again
        self.sleep_levels: frozenset[SleepLevel] = frozenset()  # that its worker process supports
        self.sleep_enabled = True  # False after sleeping or waking has failed

        # Requested loads and unloads
        self.wanted = demand.pin or demand.preload  # load it although its queue is empty
        self.keep_loaded = False  # pinned by the minimum number of instances of a deployment
        self.pin_override: bool | None = None  # set by an operator; replaces `demand.pin`
        self.failures = 0  # failed loads in a row
        self.blocked_until = 0.0  # no load before this time, after a failed one
        self.pending_unload = ""  # reason to unload it once it has woken, loaded or fallen asleep

        # Drain
        self.drain_reason = ""
        self.drained_for: str | None = None  # the model that gets the memory
        self.sleep_after_drain = False  # fall asleep instead of being unloaded, if it can
        self.drain_quota = 0  # how many of its queue may still start
        self.drain_quota_until = 0.0

        # Reload of models.yaml
        self.next_demand: Demand | None = None  # takes effect once the model is unloaded
        self.removed = False  # forget the model once it is unloaded and its queue is empty
        #: Queued predictions that run on the loaded model, before `next_demand` takes effect.
        self.before_replacement: set[str] = set()

        # Measured times
        self.load_began: float | None = None  # of the last load or waking
        self.ready_since = 0.0
        self.last_used = 0.0
        self.last_arrival: float | None = None
        self.arrival_gap: float | None = None  # average between arrivals
        self.run_seconds: float | None = None  # average duration of a prediction
        self.load_seconds: float | None = None  # duration of the last load
        self.sleep_seconds: dict[SleepLevel, float] = {}  # the last duration of falling asleep
        self.wake_seconds: dict[SleepLevel, float] = {}  # the last duration of waking
        self.became_ready_in = 0.0  # duration of the load, or of sleeping and waking, before it was READY

    @property
    def name(self) -> str:
        """The key under which the model is loaded."""
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
        """Whether the loaded model differs from the one in the current models.yaml."""
        return self.removed or self.next_demand is not None

    @property
    def free_slots(self) -> int:
        return max(0, self.demand.concurrency - len(self.running))

    @property
    def can_sleep(self) -> bool:
        """Whether the model could fall asleep instead of being unloaded."""
        return self.demand.sleep_footprint is not None and self.sleep_enabled and bool(self.sleep_levels)

    @property
    def loadable(self) -> bool:
        """Whether the model is cold or asleep, and may be loaded or woken."""
        return self.state in {Residency.COLD, Residency.ASLEEP} and not self.pending_unload

    @property
    def expected_peak(self) -> int:
        """Bytes that the model is expected to take of one device at most; 0 if nothing was measured."""
        return max(self.peak, self.earlier_peak)

    def wants_load(self, now: float) -> bool:
        """Whether the model should be loaded or woken as soon as memory allows."""
        return self.loadable and (bool(self.queue) or self.wanted) and now >= self.blocked_until

    def waited(self, now: float) -> float:
        """Return for how many seconds its queue has waited for a load, not counting time before a drain."""
        return 0.0 if self.waiting_since is None else now - self.waiting_since

    def cold_start(self, queued_at: float) -> float:
        """Return the seconds of the last load or waking that fell after ``queued_at``; the model is ready."""
        if self.load_began is None:  # an earlier gateway process loaded it
            return 0.0
        return max(0.0, self.ready_since - max(queued_at, self.load_began))

    def next_to_start(self, now: float) -> str | None:
        """Return the prediction that starts when a slot is free; None if none may start."""
        if not self.queue:
            return None
        if self.state is Residency.READY:
            return self.queue[0]
        if self.state is not Residency.DRAINING:
            return None
        if self.outdated:
            return next((id for id in self.queue if id in self.before_replacement), None)
        return self.queue[0] if self.drain_quota > 0 and now < self.drain_quota_until else None

    # -- changes -----------------------------------------------------------------------------------------

    def transition_to(self, state: Residency, now: float) -> float:
        """Change the state; return how many seconds the previous state lasted."""
        assert state in ALLOWED_TRANSITIONS[self.state], (
            f"model {self.name} is {self.state} and cannot become {state}"
        )
        before = now - self.state_since
        self.state, self.state_since = state, now
        return before

    def record_arrival(self, now: float) -> None:
        if self.last_arrival is not None:
            self.arrival_gap = _averaged(self.arrival_gap, now - self.last_arrival)
        self.last_arrival = now

    def dequeue(self, id: str) -> None:
        """Remove a prediction that will not start here from the queue."""
        self.queue.remove(id)
        self.before_replacement.discard(id)
        if not self.queue:
            self.waiting_since = None
            self.claimed_devices = ()

    def start(self, id: str, now: float) -> None:
        self.queue.remove(id)
        self.before_replacement.discard(id)
        self.drain_quota -= self.state is Residency.DRAINING
        self.running.add(id)
        self.started_at[id] = now

    def finish(self, id: str, now: float) -> None:
        self.running.discard(id)
        self.last_used = now
        self.ran_once = True
        started_at = self.started_at.pop(id, None)
        if started_at is not None:
            self.run_seconds = _averaged(self.run_seconds, now - started_at)

    def mark_outdated(self) -> None:
        """Let the queued predictions run on the loaded model before it is replaced or removed."""
        if self.state is not Residency.UNLOADING:
            self.before_replacement.update(self.queue)
        self.sleep_after_drain = False
        if self.state in {Residency.FALLING_ASLEEP, Residency.ASLEEP}:
            self.pending_unload = CHANGED
            self.before_replacement.clear()  # the old version is not woken for them

    def apply_next_demand(self) -> None:
        """Take over the new demand, now that nothing of the model is loaded."""
        self.before_replacement.clear()
        if self.next_demand is not None:
            self.demand = self.estimated_demand = self.next_demand
            self.next_demand = None
            # These were measured with other weights or options.
            self.peak = self.earlier_peak = self.out_of_memory = 0

    def end_measurement(self) -> None:
        """Fold the peak of the load that has ended into ``earlier_peak``.

        One large prediction must not reserve memory for ever: after a lower peak, the expectation goes half
        of the way down to it.
        """
        if self.ran_once and self.peak:
            self.earlier_peak = max(self.peak, (self.earlier_peak + self.peak) // 2)
        self.peak, self.ran_once, self.exceeds = 0, False, False
