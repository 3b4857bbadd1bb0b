"""The numbers behind decisions: expected durations, urgency of a load, cost and benefit of an eviction.

All times are in seconds and derive from what was measured: how long loads, predictions, falling asleep and
waking took, and how often predictions arrived. Costs and benefits are seconds that predictions wait, summed
over them.

Thrashing is bounded: a model is not evicted for another one until it has been ready for as long as it took to
become ready (by a load, or by falling asleep and waking), and at least ``MIN_RESIDENCY``. So a model spends
at most half of any long period becoming ready or leaving, however predictions for different models alternate.
"""

from __future__ import annotations

from math import inf
from typing import Final

from appliance.scheduler.facts import Residency, SleepLevel
from appliance.scheduler.model import ModelState

#: A model that has become ready is not evicted for at least this long.
MIN_RESIDENCY: Final = 2.0
#: Busy models are drained for a model that has waited this long, and three times the duration of its load.
PATIENCE: Final = 15.0
#: A draining model starts predictions of its queue for as long as its load took, but no longer than this.
LONGEST_QUANTUM: Final = 60.0
#: Seconds before the next load after a failed one. The delay begins with the first number and doubles up to
#: the second.
BACKOFF: Final = (10.0, 300.0)
#: An idle model falls asleep after this share of `idle_unload_after`.
IDLE_SLEEP: Final = 0.5

# Assumed durations until something was measured.
_UNKNOWN_LOAD: Final = 5.0
_UNKNOWN_RUN: Final = 5.0
_UNKNOWN_GAP: Final = 600.0
_UNLOAD: Final = 1.0
#: Assumed durations of falling asleep and waking, as shares of a load.
_UNKNOWN_SLEEP: Final = {SleepLevel.KEPT: 0.1, SleepLevel.DROPPED: 0.02}
_UNKNOWN_WAKE: Final = {SleepLevel.KEPT: 0.1, SleepLevel.DROPPED: 0.4}
#: Assumed time that an evicted model stays evicted.
_EVICTED: Final = 100.0

# -- expected durations ----------------------------------------------------------------------------------


def expected_load(model: ModelState) -> float:
    return _UNKNOWN_LOAD if model.load_seconds is None else max(0.01, model.load_seconds)


def expected_sleep(model: ModelState, level: SleepLevel) -> float:
    return model.sleep_seconds.get(level, _UNKNOWN_SLEEP[level] * expected_load(model))


def expected_wake(model: ModelState, level: SleepLevel) -> float:
    return model.wake_seconds.get(level, _UNKNOWN_WAKE[level] * expected_load(model))


def expected_time_to_ready(model: ModelState) -> float:
    """Return the expected duration of the load, or of the waking if the model sleeps."""
    if model.sleep_level is None:
        return expected_load(model)
    return max(0.01, expected_wake(model, model.sleep_level))


def expected_run(model: ModelState) -> float:
    return _UNKNOWN_RUN if model.run_seconds is None else model.run_seconds


def expected_gap(model: ModelState, now: float) -> float:
    """Return the expected time to the next prediction: the average gap, or the current one if longer."""
    if model.last_arrival is None:
        return _UNKNOWN_GAP
    gap = _UNKNOWN_GAP if model.arrival_gap is None else model.arrival_gap
    return max(gap, now - model.last_arrival, 0.001)


# -- how long a model stays and waits --------------------------------------------------------------------


def min_residency(model: ModelState) -> float:
    """Return how many seconds the model stays ready before it can be evicted."""
    if model.state is Residency.LOADING:
        return max(MIN_RESIDENCY, expected_load(model))
    level = model.sleep_level
    if level is not None:  # it sleeps or wakes
        return max(MIN_RESIDENCY, expected_sleep(model, level) + expected_wake(model, level))
    return max(MIN_RESIDENCY, model.became_ready_in)


def residency_elapsed(model: ModelState, now: float) -> bool:
    """Return whether the model is ready, not pinned, and has stayed for its minimum residency."""
    return (
        model.state is Residency.READY
        and not model.pinned
        and now - model.state_since >= min_residency(model)
    )


def patience(model: ModelState) -> float:
    """Return how long the model waits for others to become idle before busy ones are drained for it."""
    return max(PATIENCE, 3 * expected_time_to_ready(model))


def quantum(model: ModelState) -> float:
    """Return how long a draining model still starts predictions that were queued before the drain."""
    return min(min_residency(model), LONGEST_QUANTUM)


def seconds_until_free(model: ModelState, now: float) -> float:
    """Return in how many seconds another model could use its memory."""
    elapsed = now - model.state_since
    match model.state:
        case Residency.LOADING | Residency.WAKING:
            return max(0.0, expected_time_to_ready(model) - elapsed) + min_residency(model)
        case Residency.READY:
            rest = max(0.0, min_residency(model) - elapsed)
            busy = 0.0 if model.idle else expected_run(model)
            return rest + busy + (quantum(model) if model.queue else 0.0)
        case Residency.DRAINING:  # a prediction that takes long is expected to take as long again
            return max(expected_run(model) - elapsed, elapsed) + _UNLOAD
        case Residency.FALLING_ASLEEP:
            level = model.sleep_level
            rest = 0.0 if level is None else expected_sleep(model, level) - elapsed
            return max(rest, elapsed / 2, 0.0)
        case Residency.UNLOADING | Residency.ASLEEP:
            return _UNLOAD
        case Residency.COLD:
            return 0.0


# -- which model is loaded next, and which is evicted for it ---------------------------------------------


def priority_weight(model: ModelState) -> float:
    """Return the factor that the model's priority puts on waiting times and costs."""
    return 2.0**model.demand.priority


def urgency(model: ModelState, now: float) -> float:
    """Return a number that is highest for the model to load next.

    It grows with the waiting time without limit, and with the number of waiting predictions per second of
    load only by the fourth root, so no model starves.
    """
    sharing = len(model.queue) / max(1.0, expected_time_to_ready(model))
    return priority_weight(model) * (1.0 + model.waited(now)) * float(sharing**0.25)


def eviction_cost(model: ModelState, now: float, level: SleepLevel | None = None) -> float:
    """Return how long predictions are expected to wait for the model to be ready again after an eviction.

    With ``level`` it falls asleep, otherwise it is unloaded. For a sleeping model only the difference between
    a load and its waking counts.
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
    """Return the most that an eviction for the model may cost: how long its predictions will have waited.

    This is the ski rental rule: wait until waiting has cost as much as the eviction. So a model that is used
    all the time is not evicted because it is idle for a moment. A model that is to be loaded without a queue
    (pinned, or loaded by an operator) may cost anything.
    """
    if not model.queue:
        return inf
    return priority_weight(model) * len(model.queue) * (model.waited(now) + expected_time_to_ready(model))


def cheapest_sleep_level(
    model: ModelState, now: float, main_memory: int, waiter: ModelState | None = None
) -> SleepLevel | None:
    """Return the level at which a ready, idle model should fall asleep; None if it should be unloaded.

    The cheapest choice is the one with the least waiting: of its own predictions until it is ready again, and
    of the ``waiter``'s until it has left. ``main_memory`` is what is available for its weights, in bytes.
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
