"""What a place on a device is worth to a model, how long it may keep it, and who is next.

Times are seconds. All of it rests on what was measured: how long loads, predictions, falling asleep and
waking took, and how often predictions came.

The bound on thrash: a model is evicted for another one no sooner after it became ready than that had taken
(and ``MIN_RESIDENCY``): its load, or falling asleep and waking. So each of these is followed by at least as
long a time in which it served, and it spends at most half of any long time on its way in or out, however
the predictions alternate.
"""

from __future__ import annotations

from math import inf
from typing import Final

from appliance.scheduler.facts import Level, Residency
from appliance.scheduler.model import ModelState

#: A model that was just loaded is not evicted for at least this long.
MIN_RESIDENCY: Final = 2.0
#: A model that waits at least this long, and three times what its load takes, has busy ones drained for it.
PATIENCE: Final = 15.0
#: A drained model still takes what was queued, for as long as its load took, but no longer than this.
LONGEST_QUANTUM: Final = 60.0
#: After a failed load the next one waits this long, doubling up to the second number.
BACKOFF: Final = (10.0, 300.0)

_UNKNOWN_LOAD: Final = 5.0  # of a model that was never loaded
_UNKNOWN_RUN: Final = 5.0  # of a model that never ran
_UNKNOWN_GAP: Final = 600.0  # of a model that was asked once or never
_UNLOAD: Final = 1.0
#: What falling asleep and waking are taken to need at first, as shares of a load.
_UNKNOWN_SLEEP: Final = {Level.KEPT: 0.1, Level.DROPPED: 0.02}
_UNKNOWN_WAKE: Final = {Level.KEPT: 0.1, Level.DROPPED: 0.4}
#: What is idle falls asleep after this share of the time after which it is unloaded.
IDLE_SLEEP: Final = 0.5
#: Who is evicted stays away for about this long.
_AWAY: Final = 100.0


def expected_load(model: ModelState) -> float:
    """Seconds that its next load takes."""
    return _UNKNOWN_LOAD if model.load_seconds is None else max(0.01, model.load_seconds)


def expected_sleep(model: ModelState, level: Level) -> float:
    """Seconds that it takes to fall asleep."""
    return model.sleep_seconds.get(level, _UNKNOWN_SLEEP[level] * expected_load(model))


def expected_wake(model: ModelState, level: Level) -> float:
    """Seconds that it takes to wake from that sleep."""
    return model.wake_seconds.get(level, _UNKNOWN_WAKE[level] * expected_load(model))


def expected_return(model: ModelState) -> float:
    """Seconds until it could be ready, from what it is now: its load, or its waking."""
    return expected_load(model) if model.level is None else max(0.01, expected_wake(model, model.level))


def expected_run(model: ModelState) -> float:
    """Seconds that a prediction of it takes."""
    return _UNKNOWN_RUN if model.run_seconds is None else model.run_seconds


def expected_gap(model: ModelState, now: float) -> float:
    """Seconds until its next prediction: the average gap, or what it has already been silent for."""
    if model.last_arrival is None:
        return _UNKNOWN_GAP
    gap = _UNKNOWN_GAP if model.gap is None else model.gap
    return max(gap, now - model.last_arrival, 0.001)


def weight(model: ModelState) -> float:
    """What its priority multiplies."""
    return 2.0**model.demand.priority


def min_residency(model: ModelState) -> float:
    """Seconds that it may stay once it is ready."""
    if model.state is Residency.LOADING:
        return max(MIN_RESIDENCY, expected_load(model))
    if model.level is not None:  # it sleeps, or wakes
        return max(MIN_RESIDENCY, expected_sleep(model, model.level) + expected_wake(model, model.level))
    return max(MIN_RESIDENCY, model.brought_in)


def patience(model: ModelState) -> float:
    """Seconds that it waits for others to fall idle before busy ones are drained for it."""
    return max(PATIENCE, 3 * expected_return(model))


def quantum(model: ModelState) -> float:
    """Seconds in which it still takes what was queued when it is drained."""
    return min(min_residency(model), LONGEST_QUANTUM)


def urgency(model: ModelState, now: float) -> float:
    """How much it should be the next to be loaded: by its wait, by how many share that, and its cost.

    It grows with the wait without limit, and all else in it is bounded: nothing starves.
    """
    sharing = len(model.queue) / max(1.0, expected_return(model))
    return weight(model) * (1.0 + model.waited(now)) * float(sharing**0.25)


def eviction_cost(model: ModelState, now: float, level: Level | None = None) -> float:
    """Seconds that predictions will wait for it to come back if it is evicted now.

    With ``level`` it falls asleep, else it is unloaded. A sleeper has less to lose than what is ready.
    """
    back, gap = (
        expected_load(model) if level is None else expected_wake(model, level),
        expected_gap(model, now),
    )
    if model.state is Residency.ASLEEP:
        back = max(0.0, back - expected_return(model))
    returns = 1.0 if model.queue else _AWAY / (_AWAY + gap)
    # While it comes back further predictions come, and wait half of that on average.
    waiting = max(1.0, len(model.queue)) + back / gap / 2
    return weight(model) * back * returns * waiting


def tier(model: ModelState, now: float, main: int, waiter: ModelState | None = None) -> Level | None:
    """How an idle model that is ready makes room: asleep at this level, or unloaded with None.

    ``main`` is what main memory has for it, in bytes. What counts is how long its own predictions will wait
    for it to come back, and the ``waiter`` for it to go.
    """
    asleep = model.demand.asleep
    if asleep is None:
        return None
    waiting = 0.0 if waiter is None else weight(waiter) * max(1, len(waiter.queue))
    tiers: list[tuple[float, Level | None]] = [(eviction_cost(model, now) + _UNLOAD * waiting, None)]
    for level in sorted(model.levels):
        if level is Level.DROPPED or asleep.main <= main:
            tiers.append((eviction_cost(model, now, level) + expected_sleep(model, level) * waiting, level))
    return min(tiers, key=lambda each: each[0])[1]


def eviction_benefit(model: ModelState, now: float) -> float:
    """Seconds that its predictions have waited, and will at least: what its being loaded may cost others.

    As with skis that are rented until that has cost as much as buying them: a model that is asked all the
    time is not evicted at once because it happens to be idle for a moment. What is wanted although nothing
    waits for it, because it is pinned or someone asked for it by hand, may cost anything.
    """
    if not model.queue:
        return inf
    return weight(model) * len(model.queue) * (model.waited(now) + expected_return(model))


def freed_in(model: ModelState, now: float) -> float:
    """Seconds until its memory could be another's: 0 if it is idle and has had its time."""
    held = now - model.state_since
    match model.state:
        case Residency.LOADING | Residency.WAKING:
            return max(0.0, expected_return(model) - held) + min_residency(model)
        case Residency.READY:
            rest = max(0.0, min_residency(model) - held)
            busy = 0.0 if model.idle else expected_run(model)
            return rest + busy + (quantum(model) if model.queue else 0.0)
        case Residency.DRAINING:  # one that takes long is expected to take as long again
            return max(expected_run(model) - held, held) + _UNLOAD
        case Residency.FALLING_ASLEEP:
            rest = 0.0 if model.level is None else expected_sleep(model, model.level) - held
            return max(rest, held / 2, 0.0)
        case Residency.UNLOADING | Residency.ASLEEP:
            return _UNLOAD
        case Residency.COLD:
            return 0.0


def had_its_time(model: ModelState, now: float) -> bool:
    """Whether it may be evicted as far as its residency goes."""
    return (
        model.state is Residency.READY
        and not model.pinned
        and now - model.state_since >= min_residency(model)
    )
