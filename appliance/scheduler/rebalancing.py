"""Instances of one model share what waits for any of them: none idles while a prediction waits for another.

Which instance a prediction goes to is chosen when it arrives, by what is known then. That another one is free
first, or that there is room for one more, shows only later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.children import Children
from appliance.scheduler.facts import Residency
from appliance.scheduler.model import ModelState


class Waiting(NamedTuple):
    """A prediction that has not begun."""

    model: str  # the instance in whose queue it is
    since: float


class Rebalancing:
    """A part of the scheduler, to whom all that it is given belongs."""

    def __init__(self, models: Mapping[str, ModelState], queued: dict[str, Waiting]) -> None:
        """No model has siblings until ``share`` says so."""
        self._models = models
        self._queued = queued
        self._others: dict[str, tuple[str, ...]] = {}  # by who may take what waits for them

    def share(self, instances: Sequence[str], used: int) -> None:
        """These are instances of one model; the first ``used`` of them may take what waits for any."""
        for number, name in enumerate(instances):
            others = tuple(each for each in instances if each != name) if number < used else ()
            if others:
                self._others[name] = others
            else:
                self._others.pop(name, None)

    def fill(self, now: float, parts: Children, *, parts_only: bool) -> Iterator[ModelState]:
        """Give free slots what waits longest for other instances, parts first; yields who got any."""
        for taker in self._takers():
            for _ in range(taker.slots if taker.state is Residency.READY else 0):
                found = self._movable(taker)
                ranked = [(id not in parts, self._queued[id].since, id) for id in found]
                if not ranked or (parts_only and min(ranked)[0]):
                    break
                self._move(min(ranked)[-1], taker, now)
            if taker.queue:
                yield taker

    def spread(self, now: float, has_room: Callable[[str], bool]) -> None:
        """Have instances loaded for what will not get a slot where it waits, even once that is ready.

        It has waited for as long as the load takes: whoever loads at once may find that a slot came free
        meanwhile, and whoever never does waits behind what may run for hours.
        """
        for taker in self._takers():
            if not taker.away or now < taker.blocked_until:
                continue
            due = now - policy.expected_return(taker)
            found = self._movable(taker, but_for_slots=True)
            late = [(since, id) for id in found if (since := self._queued[id].since) <= due]
            if late and has_room(taker.name):
                self._move(min(late)[-1], taker, now)

    def crowded(self) -> bool:
        """Whether an instance is away while more wait for others than these have slots."""
        away = (taker for taker in self._takers() if taker.away)
        return any(len(each.queue) > each.slots for taker in away for each in self._of(taker))

    def relieve(self, entry: ModelState, now: float) -> None:
        """It cannot serve: what waits for it waits for an instance that does, if there is one."""
        serving = [each for each in self._of(entry) if each.state is Residency.READY]
        if serving:
            sibling = min(serving, key=lambda each: len(each.queue) + len(each.running))
            for id in list(entry.queue):
                self._move(id, sibling, now)

    def _move(self, id: str, taker: ModelState, now: float) -> None:
        waiting = self._queued[id]
        self._models[waiting.model].left(id)
        self._queued[id] = waiting._replace(model=taker.name)
        taker.queue.append(id)
        if taker.waiting_since is None:
            taker.waiting_since = now

    def _takers(self) -> Iterator[ModelState]:
        """Those for whom nothing waits, and who stay what they are."""
        for name in self._others:
            entry = self._models.get(name)
            if entry is not None and not entry.queue and not entry.replaced:
                yield entry

    def _of(self, entry: ModelState) -> list[ModelState]:
        found = (self._models.get(name) for name in self._others.get(entry.name, ()))
        return [each for each in found if each is not None]

    def _movable(self, taker: ModelState, *, but_for_slots: bool = False) -> list[str]:
        """The first that waits for each of the others, and need not run on what is loaded there.

        With ``but_for_slots`` those are passed over who will have a slot there once it is ready.
        """
        found = []
        for each in self._of(taker):
            queue = islice(each.queue, each.slots if but_for_slots else 0, None)
            found += [id for id in queue if id not in each.staying][:1]
        return found
