"""The models that the next decision has to consider, so that it does not consider all models.

Models report their changes (``ModelState.mark_changed``). ``ModelIndex`` keeps sets of models that may need a
decision, such as a load or a start, and the times at which models may need one although nothing happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import Final

from appliance.scheduler import policy
from appliance.scheduler.facts import Demand, Residency
from appliance.scheduler.model import ModelState

#: States that a model stays in until a decision changes them.
_STABLE: Final = frozenset({Residency.COLD, Residency.READY, Residency.ASLEEP})
_NOT_READY: Final = frozenset({Residency.COLD, Residency.ASLEEP})
_MAY_LEAVE: Final = frozenset({Residency.READY, Residency.ASLEEP})
_REPLACED_KEPT: Final = 64  # replaced times that ``DueTimes`` keeps, besides one for each model


def in_order(models: Iterable[ModelState]) -> list[ModelState]:
    """Return the models in the order in which they were added to the scheduler."""
    return sorted(models, key=lambda each: each.number)


class DueTimes:
    """One time for each model. A new time replaces the previous one."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, ModelState]] = []
        self._at: dict[ModelState, float] = {}

    def set(self, model: ModelState, at: float | None) -> None:
        """Set the time of a model; None removes it."""
        if at is None:
            self._at.pop(model, None)
        elif self._at.get(model) != at:
            self._at[model] = at
            heappush(self._heap, (at, model.number, model))
            if len(self._heap) > 2 * len(self._at) + _REPLACED_KEPT:
                self._heap = [(due, each.number, each) for each, due in self._at.items()]
                heapify(self._heap)

    def take_due(self, now: float, limit: int | None = None) -> list[ModelState]:
        """Remove and return up to ``limit`` models whose time has come, the earliest first."""
        due: list[ModelState] = []
        while self._heap and self._heap[0][0] <= now and len(due) != limit:
            at, _, model = heappop(self._heap)
            if self._at.get(model) == at:
                del self._at[model]
                due.append(model)
        return due

    def earliest(self, condition: Callable[[ModelState], bool] | None = None) -> float | None:
        """Return the earliest time of the models for which ``condition`` is true; None if there are none."""
        skipped: list[tuple[float, int, ModelState]] = []
        found = None
        while self._heap:
            at, _, model = self._heap[0]
            if self._at.get(model) != at:
                heappop(self._heap)
            elif condition is not None and not condition(model):
                skipped.append(heappop(self._heap))
            else:
                found = at
                break
        for each in skipped:
            heappush(self._heap, each)
        return found


class ModelIndex:
    """Sets of models that may need a decision, derived from their ``ModelState``."""

    def __init__(self, changed_devices: set[str]) -> None:
        """The devices of changed models are added to ``changed_devices``."""
        self._changed_devices = changed_devices
        self._changed_since_taken: set[ModelState] = set()  # since the last call of `take_changed`
        self._added = 0
        self._changed: set[ModelState] = set()  # whose sets and times are outdated
        self._may_start: set[ModelState] = set()
        self._not_ready: set[ModelState] = set()  # cold or asleep, and to be loaded
        self._with_queue: set[ModelState] = set()
        self._in_transition: set[ModelState] = set()
        self._departing: set[ModelState] = set()
        self._idle_due: set[ModelState] = set()  # idle for long enough to fall asleep or to be unloaded
        self._idle = DueTimes()  # when an idle model falls asleep or is unloaded: the earlier of both
        self._idle_longer = DueTimes()  # the later of both
        self._residency = DueTimes()  # ends of minimum residencies
        self._patience = DueTimes()  # when busy models are drained for a waiting model

    def new(self, demand: Demand) -> ModelState:
        self._added += 1
        model = ModelState(demand, self._added, self._changed)
        model.mark_changed()
        return model

    def removed(self, model: ModelState) -> None:
        """Forget a model."""
        self._changed.discard(model)
        self._changed_since_taken.add(model)
        for found in (
            self._may_start,
            self._not_ready,
            self._with_queue,
            self._in_transition,
            self._departing,
            self._idle_due,
        ):
            found.discard(model)
        for times in (self._idle, self._idle_longer, self._residency, self._patience):
            times.set(model, None)

    # -- questions ---------------------------------------------------------------------------------------

    def take_changed(self, now: float) -> set[ModelState]:
        """Return the models that were changed or removed since the last call.

        The devices of models whose minimum residency is over are added to the changed devices.
        """
        self._refresh()
        self._end_residency(now)
        found, self._changed_since_taken = self._changed_since_taken, set()
        return found

    def take_startable(self, *, keep: bool) -> list[ModelState]:
        """Return the models that may start predictions. With ``keep``, the next call returns them again."""
        self._refresh()
        found = in_order(self._may_start)
        if not keep:
            self._may_start.clear()
        return found

    def not_ready(self) -> list[ModelState]:
        """Return the cold and sleeping models that are to be loaded, in order."""
        self._refresh()
        return in_order(self._not_ready)

    def with_queue(self) -> set[ModelState]:
        """Return the models with queued predictions."""
        self._refresh()
        return self._with_queue

    def is_waiting(self, model: ModelState) -> bool:
        """Return whether the model is cold or asleep and to be loaded."""
        self._refresh()
        return model in self._not_ready

    def any_wants_load(self, now: float) -> bool:
        self._refresh()
        return any(each.wants_load(now) for each in self._not_ready)

    def departing(self, now: float) -> list[ModelState]:
        """Return the models that may have to be unloaded or put to sleep now, in order."""
        self._refresh()
        self._idle_due.update(self._idle.take_due(now))
        return in_order(self._departing | self._idle_due)

    @property
    def all_stable(self) -> bool:
        """Whether no model is about to change its state."""
        self._refresh()
        return not self._in_transition

    def next_times(self, now: float, recheck: float, may_leave: Callable[[ModelState], bool]) -> list[float]:
        """Return times at which a decision may be necessary; some are in the past.

        If a model is to be loaded and not blocked, one of them is in ``recheck`` seconds. ``may_leave``
        returns whether an idle model may be put to sleep or unloaded now.
        """
        self._refresh()
        self._idle_due.update(self._idle.take_due(now))
        self._idle_longer.take_due(now)
        found = [self._idle.earliest(may_leave), self._idle_longer.earliest(may_leave)]
        if self._not_ready:
            at = None
            for each in self._not_ready:
                at = each.blocked_until if at is None else min(at, each.blocked_until)
                if at <= now + recheck:
                    break
            self._patience.take_due(now)
            self._end_residency(now)
            found += [max(at or 0.0, now + recheck), self._patience.earliest(), self._residency.earliest()]
        return [at for at in found if at is not None]

    # -- changes -----------------------------------------------------------------------------------------

    def _end_residency(self, now: float) -> None:
        for model in self._residency.take_due(now):
            self._changed_devices.update(model.devices)

    def _refresh(self) -> None:
        while self._changed:
            self._classify(self._changed.pop())

    def _classify(self, model: ModelState) -> None:
        state, wanted = model.state, bool(model.queue) or model.wanted
        self._may_start.add(model)
        self._changed_since_taken.add(model)
        self._changed_devices.update(model.devices)
        _set_member(self._not_ready, model, state in _NOT_READY and wanted)
        _set_member(self._with_queue, model, bool(model.queue))
        _set_member(
            self._in_transition, model, state not in _STABLE or model.wanted or bool(model.pending_unload)
        )
        leaves = bool(model.pending_unload) and state is Residency.ASLEEP
        _set_member(self._departing, model, state is Residency.DRAINING or leaves)
        self._idle_due.discard(model)
        limit, may_leave = model.demand.idle_unload_after, state in _MAY_LEAVE and not model.pinned
        idle = idle_longer = residency = patience = None
        if may_leave and model.idle and limit is not None:
            idle = idle_longer = model.last_used + limit
            if state is Residency.READY and model.can_sleep:
                falls_asleep = policy.idle_sleep_at(model, limit)
                idle, idle_longer = min(idle, falls_asleep), max(idle, falls_asleep)
        if may_leave and state is Residency.READY:
            residency = model.state_since + policy.min_residency(model)
        if state in _NOT_READY and model.queue and model.waiting_since is not None:
            patience = model.waiting_since + policy.patience(model)
        self._idle.set(model, idle)
        self._idle_longer.set(model, idle_longer)
        self._residency.set(model, residency)
        self._patience.set(model, patience)


def _set_member(models: set[ModelState], model: ModelState, belongs: bool) -> None:
    if belongs:
        models.add(model)
    else:
        models.discard(model)
