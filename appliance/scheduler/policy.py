"""Expected durations, the urgency of a load, and the cost and benefit of an eviction.

Times are seconds, estimated from measured durations of loads, predictions, falling asleep and waking, and
from the times at which predictions arrived. Costs and benefits are total waiting times of predictions.

Thrashing is bounded: a ready model is not evicted before its minimum residency is over. That is the time
that it took to become ready (by a load or by waking), plus the time that it took to fall asleep before that,
and at least ``MIN_RESIDENCY``. So a model spends at most half of any long period loading, falling asleep and
waking, in whatever order predictions arrive.
"""

from __future__ import annotations

from math import inf
from typing import Final

from appliance.scheduler.facts import Residency, SleepLevel
from appliance.scheduler.model import ModelState

#: Least seconds between the time at which a model becomes ready and its eviction.
MIN_RESIDENCY: Final = 2.0
#: Least seconds that a model waits before busy models are drained for it.
PATIENCE: Final = 15.0
#: Most seconds for which a draining model still starts queued predictions.
LONGEST_QUANTUM: Final = 60.0
#: Seconds between a failed load and the next load: after the first failure, and at most. Each further failure
#: doubles them.
BACKOFF: Final = (10.0, 300.0)


def backoff(failures: int) -> float:
    """Return the seconds between the last of ``failures`` failed loads and the next load."""
    first, longest = BACKOFF
    return min(first * 2.0 ** min(failures - 1, 20), longest)


#: An idle model falls asleep after this fraction of ``idle_unload_after``, if its minimum residency is over.
IDLE_SLEEP: Final = 0.5

# Seconds that are assumed before anything was measured.
_UNKNOWN_LOAD: Final = 5.0
_UNKNOWN_RUN: Final = 5.0
_UNKNOWN_GAP: Final = 600.0
_UNLOAD: Final = 1.0
#: Assumed durations of falling asleep and waking, as fractions of a load.
_UNKNOWN_SLEEP: Final = {SleepLevel.KEPT: 0.1, SleepLevel.DROPPED: 0.02}
_UNKNOWN_WAKE: Final = {SleepLevel.KEPT: 0.1, SleepLevel.DROPPED: 0.4}
#: Assumed seconds that an evicted model stays evicted.
_EVICTED: Final = 100.0

# -- expected durations ----------------------------------------------------------------------------------


def expected_load(model: ModelState) -> float:
    return _UNKNOWN_LOAD if model.load_seconds is None else max(0.01, model.load_seconds)


def expected_sleep(model: ModelState, level: SleepLevel) -> float:
    return model.sleep_seconds.get(level, _UNKNOWN_SLEEP[level] * expected_load(model))


def expected_wake(model: ModelState, level: SleepLevel) -> float:
    return model.wake_seconds.get(level, _UNKNOWN_WAKE[level] * expected_load(model))


def expected_time_to_ready(model: ModelState) -> float:
    """Return the expected duration of loading the model, or of waking it if it sleeps."""
    if model.sleep_level is None:
        return expected_load(model)
    return max(0.01, expected_wake(model, model.sleep_level))


def expected_run(model: ModelState) -> float:
    return _UNKNOWN_RUN if model.run_seconds is None else model.run_seconds


def expected_gap(model: ModelState, now: float) -> float:
    """Return the expected seconds between two predictions: the average or, if longer, the present gap."""
    if model.last_arrival is None:
        return _UNKNOWN_GAP
    gap = _UNKNOWN_GAP if model.arrival_gap is None else model.arrival_gap
    return max(gap, now - model.last_arrival, 0.001)


# -- how long a model stays ready, and how long it waits --------------------------------------------------


def min_residency(model: ModelState) -> float:
    if model.state is Residency.LOADING:
        return max(MIN_RESIDENCY, model.last_sleep_seconds + expected_load(model))
    level = model.sleep_level
    if level is not None:  # it sleeps or wakes
        return max(MIN_RESIDENCY, expected_sleep(model, level) + expected_wake(model, level))
    return max(MIN_RESIDENCY, model.seconds_to_ready)


def residency_elapsed(model: ModelState, now: float) -> bool:
    return (
        model.state is Residency.READY
        and not model.pinned
        and now - model.state_since >= min_residency(model)
    )


def idle_sleep_at(model: ModelState, limit: float) -> float:
    """Return when a ready, idle model falls asleep, if it is unloaded after ``limit`` seconds without use."""
    return max(model.last_used + limit * IDLE_SLEEP, model.state_since + min_residency(model))


def patience(model: ModelState) -> float:
    """Return the seconds that the model waits before busy models are drained for it."""
    return max(PATIENCE, 3 * expected_time_to_ready(model))


def quantum(model: ModelState) -> float:
    """Return for how many seconds a draining model still starts predictions queued before the drain."""
    return min(min_residency(model), LONGEST_QUANTUM)


def seconds_until_free(model: ModelState, now: float) -> float:
    elapsed = now - model.state_since
    match model.state:
        case Residency.LOADING | Residency.WAKING:
            return max(0.0, expected_time_to_ready(model) - elapsed) + min_residency(model)
        case Residency.READY:
            rest = max(0.0, min_residency(model) - elapsed)
            busy = 0.0 if model.idle else expected_run(model)
            return rest + busy + (quantum(model) if model.queue else 0.0)
        case Residency.DRAINING:  # a prediction that exceeds the expectation is assumed to take as long again
            return max(expected_run(model) - elapsed, elapsed) + _UNLOAD
        case Residency.FALLING_ASLEEP:
            level = model.sleep_level
            rest = 0.0 if level is None else expected_sleep(model, level) - elapsed
            return max(rest, elapsed / 2, 0.0)
        case Residency.UNLOADING | Residency.ASLEEP:
            return _UNLOAD
        case Residency.COLD:
            return 0.0


# -- which model is loaded next, and which models are evicted for it -------------------------------------


def priority_weight(model: ModelState) -> float:
    """Return the factor by which the model's priority multiplies waiting times and costs."""
    return 2.0**model.demand.priority


def predictions_weight(model: ModelState) -> float:
    """Return the factor that turns seconds until the model is ready into waiting time of its predictions."""
    return priority_weight(model) * max(1, len(model.queue))


def urgency(model: ModelState, now: float) -> float:
    """Return the urgency of a load; the model with the highest urgency is loaded next.

    The urgency grows linearly with the waiting time, but only with the fourth root of the number of queued
    predictions. So every model is loaded at some time.
    """
    sharing = len(model.queue) / max(1.0, expected_time_to_ready(model))
    return priority_weight(model) * (1.0 + model.waited(now)) * float(sharing**0.25)


def eviction_cost(model: ModelState, now: float, level: SleepLevel | None = None) -> float:
    """Return how long predictions are expected to wait because the model is evicted now.

    With ``level`` the model falls asleep, otherwise it is unloaded. For a sleeping model, the cost is the
    difference between a load and a wake.
    """
    back = expected_load(model) if level is None else expected_wake(model, level)
    gap = expected_gap(model, now)
    if model.state is Residency.ASLEEP:
        back = max(0.0, back - expected_time_to_ready(model))
    probability_of_return = 1.0 if model.queue else _EVICTED / (_EVICTED + gap)
    # Predictions that arrive during the next load wait for half of it on average.
    waiting = max(1.0, len(model.queue)) + back / gap / 2
    return priority_weight(model) * back * probability_of_return * waiting


def eviction_benefit(model: ModelState, now: float) -> float:
    """Return the most that an eviction for the model may cost.

    That is the number of seconds that its queued predictions will have waited, all together, when the model
    is loaded, times the weight of its priority. This is the ski rental rule: an eviction is allowed once the
    waiting has cost as much as the eviction. So a model that is constantly used is not evicted when it is
    idle for a moment. For a model that is loaded without queued
    predictions (pinned, or loaded by an operator) there is no limit.
    """
    if not model.queue:
        return inf
    return priority_weight(model) * len(model.queue) * (model.waited(now) + expected_time_to_ready(model))


def cheapest_sleep_level(
    model: ModelState, now: float, main_memory: int, waiter: ModelState | None = None
) -> SleepLevel | None:
    """Return the level at which a ready, idle model should fall asleep; None if it should be unloaded.

    The cost of each choice has two parts: its own predictions wait until it is ready again, and the
    predictions of ``waiter`` wait until its memory is free. ``main_memory`` is the number of bytes that its
    weights may use.
    """
    footprint = model.demand.sleep_footprint
    if footprint is None:
        return None
    waiting = 0.0 if waiter is None else priority_weight(waiter) * max(1, len(waiter.queue))
    options: list[tuple[float, SleepLevel | None]] = [(eviction_cost(model, now) + _UNLOAD * waiting, None)]
    for level in sorted(model.sleep_levels):
        if level is SleepLevel.DROPPED or footprint.main_memory <= main_memory:
            cost = eviction_cost(model, now, level) + expected_sleep(model, level) * waiting
            options.append((cost, level))
    return min(options, key=lambda option: option[0])[1]
