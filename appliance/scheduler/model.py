"""What the scheduler knows of one model."""

from __future__ import annotations

from collections import deque
from typing import Final

from appliance.scheduler.facts import MAY_BECOME, Demand, Level, Residency

#: Why something is unloaded that a reload has changed.
CHANGED: Final = "models.yaml was changed"
#: Weight of the newest gap, or run, in the moving averages.
NEWEST: Final = 0.2


def _averaged(before: float | None, value: float) -> float:
    return value if before is None else before + NEWEST * (value - before)


class ModelState:
    """Everything known of one model; only the scheduler and its ledger write it."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.state = Residency.COLD
        self.queue: deque[str] = deque()
        self.running: set[str] = set()
        self.devices: tuple[str, ...] = ()
        self.reserved = 0  # bytes on each of its devices
        self.main = 0  # bytes of main memory beside them, for the weights of a sleeper
        self.level: Level | None = None  # of its sleep, from falling asleep until it is awake
        self.levels: frozenset[Level] = frozenset()  # that its host is able to
        self.sleeps = True  # False once it has failed to
        self.wanted = demand.pin or demand.preload  # load it although nothing is queued
        self.kept = False  # as if it was pinned
        self.by_hand: bool | None = None  # in place of `demand.pin`, if someone said so
        self.claim: tuple[str, ...] = ()  # devices that are cleared for it, because it waited long
        self.waiting_since: float | None = None  # of what is queued; anew when it is drained
        self.state_since = 0.0  # when it became what it is
        self.load_began: float | None = None  # or its waking
        self.ready_since = 0.0
        self.last_used = 0.0
        self.last_arrival: float | None = None
        self.gap: float | None = None  # seconds between arrivals, averaged
        self.load_seconds: float | None = None  # what its last load took
        self.sleep_seconds: dict[Level, float] = {}  # what falling asleep took the last time
        self.wake_seconds: dict[Level, float] = {}  # what waking took the last time
        self.brought_in = 0.0  # what became of it being ready took: a load, or falling asleep and waking
        self.run_seconds: float | None = None  # what a prediction takes, averaged
        self.began: dict[str, float] = {}  # of what runs
        self.estimate = demand  # what it asked for before anything was measured
        self.peak = 0  # bytes on one device that it took at most since it was loaded
        self.earlier = 0  # the same of the loads before, the older ones counting less
        self.ran_once = False  # since it was loaded
        self.exceeds = False  # models.yaml says less than it takes; that was said
        self.out_of_memory = 0  # how often its host was ended because it took too much memory
        self.failures = 0
        self.blocked_until = 0.0
        self.drain_reason = ""
        self.drained_for: str | None = None  # the model that gets the room
        self.drained_to_sleep = False  # if it can
        self.dismissed = ""  # why it is to be unloaded, although it sleeps or is on its way in
        self.quota = 0  # how many of the queue it still takes while it drains
        self.quota_until = 0.0
        self.successor: Demand | None = None  # what it asks for once what is loaded now is gone
        self.leaves = False  # it is forgotten once nothing of it is left
        self.staying: set[str] = set()  # of its queue: what still runs on what is loaded now

    @property
    def name(self) -> str:
        """What it is loaded as."""
        return self.demand.model

    @property
    def waiting(self) -> deque[str]:
        """The ids that wait for it, first come first."""
        return self.queue

    @property
    def pinned(self) -> bool:
        """Whether it is never evicted."""
        return not self.leaves and (self.kept or (self.demand.pin if self.by_hand is None else self.by_hand))

    @property
    def idle(self) -> bool:
        """Whether nothing waits for it or runs on it."""
        return not self.queue and not self.running

    @property
    def replaced(self) -> bool:
        """Whether what is loaded now is not what will be loaded for it next."""
        return self.leaves or self.successor is not None

    @property
    def slots(self) -> int:
        """How many more may run on it at a time."""
        return max(0, self.demand.concurrency - len(self.running))

    def next(self, now: float) -> str | None:
        """The id that may begin next, if it has a slot."""
        if not self.queue:
            return None
        if self.state is Residency.READY:
            return self.queue[0]
        if self.state is not Residency.DRAINING:
            return None
        if self.replaced:
            return next((id for id in self.queue if id in self.staying), None)
        return self.queue[0] if self.quota > 0 and now < self.quota_until else None

    def replace(self) -> None:
        """What is loaded for it is not what it asks for any more: what waits for that now still has it."""
        if self.state is not Residency.UNLOADING:
            self.staying.update(self.queue)
        self.drained_to_sleep = False
        if self.state in {Residency.FALLING_ASLEEP, Residency.ASLEEP}:
            self.dismissed = CHANGED
            self.staying.clear()  # it would have to be woken for them

    def succeed(self) -> None:
        """Nothing of it is loaded any more: from now on it asks for what it was told last."""
        self.staying.clear()
        if self.successor is not None:
            self.demand = self.estimate = self.successor
            self.successor = None
            self.peak = self.earlier = self.out_of_memory = 0  # those were of something else

    def become(self, state: Residency, now: float) -> float:
        """Change the state; returns how many seconds it was what it was."""
        assert state in MAY_BECOME[self.state], f"{self.name} is {self.state} and cannot become {state}"
        before = now - self.state_since
        self.state, self.state_since = state, now
        return before

    def arrived(self, now: float) -> None:
        """A new prediction for it."""
        if self.last_arrival is not None:
            self.gap = _averaged(self.gap, now - self.last_arrival)
        self.last_arrival = now

    def left(self, id: str) -> None:
        """What waited for it does not any more."""
        self.queue.remove(id)
        self.staying.discard(id)
        if not self.queue:
            self.waiting_since = None
            self.claim = ()

    def ran(self, id: str, now: float) -> None:
        """What ran is over."""
        self.running.discard(id)
        self.last_used = now
        self.ran_once = True
        began = self.began.pop(id, None)
        if began is not None:
            self.run_seconds = _averaged(self.run_seconds, now - began)

    @property
    def expected_peak(self) -> int:
        """Bytes on one device that it is expected to take at most."""
        return max(self.peak, self.earlier)

    def unloaded(self) -> None:
        """What it took this time is of the past.

        One large prediction must not hold memory for ever: where less was taken this time, the expectation
        goes half of the way back.
        """
        if self.ran_once and self.peak:
            self.earlier = max(self.peak, (self.earlier + self.peak) // 2)
        self.peak, self.ran_once, self.exceeds = 0, False, False

    @property
    def may_sleep(self) -> bool:
        """Whether it could fall asleep instead of being unloaded."""
        return self.demand.asleep is not None and self.sleeps and bool(self.levels)

    @property
    def away(self) -> bool:
        """Whether it would have to be loaded, or woken, to run anything, and could be."""
        return self.state in {Residency.COLD, Residency.ASLEEP} and not self.dismissed

    def wants_load(self, now: float) -> bool:
        """Whether it should be loaded, or woken, as soon as there is a place."""
        return self.away and (bool(self.queue) or self.wanted) and now >= self.blocked_until

    def waited(self, now: float) -> float:
        """Seconds that it has waited for its turn to be loaded; what it held before does not count."""
        return 0.0 if self.waiting_since is None else now - self.waiting_since

    def loaded_since(self, queued_at: float) -> float:
        """Seconds of its last load, or waking, that fell after ``queued_at``; it is ready."""
        if self.load_began is None:  # an earlier gateway loaded it
            return 0.0
        return max(0.0, self.ready_since - max(queued_at, self.load_began))
