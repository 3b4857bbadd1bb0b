"""Moves queued predictions between the instances of one model.

A prediction joins the queue of one instance when it arrives. It is moved if another instance has a free slot
first, or if memory becomes free for one more instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.children import Children
from appliance.scheduler.facts import Owner, Residency
from appliance.scheduler.model import ModelState
from appliance.scheduler.model_index import ModelIndex


class QueuedPrediction(NamedTuple):
    """A prediction that has not started."""

    model: str  # the instance that queues it
    since: float  # time of its arrival
    owner: Owner


class Rebalancing:
    """Moves queued predictions between instances of one model."""

    def __init__(
        self, models: Mapping[str, ModelState], queued: dict[str, QueuedPrediction], index: ModelIndex
    ) -> None:
        self._models = models
        self._queued = queued
        self._index = index
        self._others: dict[str, tuple[str, ...]] = {}  # receiving instance -> the model's other instances
        self._instances: dict[str, tuple[str, ...]] = {}  # any instance -> all instances of the model
        self._added = 0
        self._order: dict[str, int] = {}  # of the receiving instances
        self._new: set[str] = set()  # receiving instances that have not shared the virtual time yet

    def set_instances(self, instances: Sequence[str], used: int) -> None:
        """Set the instances of one model. Queued predictions move only to the first ``used`` instances."""
        for number, name in enumerate(instances):
            others = tuple(each for each in instances if each != name) if number < used else ()
            self._instances[name] = tuple(instances)
            if others:
                if name not in self._others:
                    self._added += 1
                    self._order[name] = self._added
                self._others[name] = others
                self._new.add(name)
            else:
                self._others.pop(name, None)
                self._order.pop(name, None)
                self._new.discard(name)

    def fill_free_slots(self, now: float, children: Children, *, children_only: bool) -> Iterator[ModelState]:
        """Move queued predictions to instances with free slots; yield these instances.

        Child predictions are moved first, then those that are first in the fair order of all instances.
        """
        for receiver in self._receivers():
            for other in self._others_of(receiver):
                other.queue.share_virtual_time(receiver.queue)
            self._new.discard(receiver.name)
            for _ in range(receiver.free_slots if receiver.state is Residency.READY else 0):
                found = self._movable(receiver)
                ranked = [(id not in children, self._tag(id), self._queued[id].since, id) for id in found]
                if not ranked or (children_only and min(ranked)[0]):
                    break
                self._move(min(ranked)[-1], receiver, now)
            if receiver.queue:
                yield receiver

    def load_more_instances(self, now: float, fits_now: Callable[[str], bool]) -> None:
        """Move queued predictions to unloaded instances, so that these are loaded into free memory.

        A prediction is moved only if the free slots of its present instance are too few, and only after it
        has waited for as long as a load takes. Earlier, the load may be in vain because a slot becomes free;
        without a load, the prediction may wait hours for running ones.
        """
        for receiver in self._receivers():
            if not receiver.loadable or now < receiver.blocked_until:
                continue
            due = now - policy.expected_time_to_ready(receiver)
            found = self._movable(receiver, beyond_slots=True)
            late = [(since, id) for id in found if (since := self._queued[id].since) <= due]
            if late and fits_now(receiver.name):
                self._move(min(late)[-1], receiver, now)

    def could_load_more(self) -> bool:
        """Return whether an instance has more queued predictions than free slots, and another is unloaded."""
        loadable = (receiver for receiver in self._receivers() if receiver.loadable)
        return any(
            len(each.queue) > each.free_slots for receiver in loadable for each in self._others_of(receiver)
        )

    def move_to_ready_instance(self, entry: ModelState, now: float) -> None:
        """Move the queue of an instance that failed to load to the least busy ready instance, if any."""
        ready = [each for each in self._others_of(entry) if each.state is Residency.READY]
        if ready:
            receiver = min(ready, key=lambda each: len(each.queue) + len(each.running))
            for id in list(entry.queue):
                self._move(id, receiver, now)

    def _move(self, id: str, receiver: ModelState, now: float) -> None:
        queued = self._queued[id]
        if id in self._models[queued.model].alone:
            receiver.alone.add(id)
        self._models[queued.model].dequeue(id)
        self._queued[id] = queued._replace(model=receiver.name)
        receiver.queue.add(id, *queued.owner)
        receiver.mark_changed()
        if receiver.waiting_since is None:
            receiver.waiting_since = now

    def _tag(self, id: str) -> float:
        return self._models[self._queued[id].model].queue.tag(id)

    def _receivers(self) -> Iterator[ModelState]:
        """Yield instances with an empty queue, except instances that a config change will replace.

        Models that have no queued predictions are left out, because nothing can be moved.
        """
        if not self._others:
            return
        names = set(self._new)
        for model in self._index.with_queue():
            names.update(self._instances.get(model.name, ()))
        for name in sorted(names & self._others.keys(), key=self._order.__getitem__):
            entry = self._models.get(name)
            if entry is not None and not entry.queue and not entry.outdated:
                yield entry

    def _others_of(self, entry: ModelState) -> list[ModelState]:
        found = (self._models.get(name) for name in self._others.get(entry.name, ()))
        return [each for each in found if each is not None]

    def _movable(self, receiver: ModelState, *, beyond_slots: bool = False) -> list[str]:
        """Return for each other instance the first queued prediction that may be moved.

        With ``beyond_slots``, as many predictions are skipped as their instance has free slots.
        """
        found = []
        for each in self._others_of(receiver):
            queue = islice(each.queue, each.free_slots if beyond_slots else 0, None)
            found += [id for id in queue if id not in each.before_replacement][:1]
        return found
