"""The models that wait to be loaded on many devices, and which of them each decision looks at.

With few devices, each decision plans the load of every waiting model. With many devices that takes too long.
So plans are kept, and a decision looks at a model only if

- the model has changed,
- the devices of its plan have changed,
- a device has changed that may have the memory for it, and the model is one of the most urgent ones,
- or nothing of that has happened for a while, because costs and benefits change with time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.device_index import DeviceIndex
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState
from appliance.scheduler.model_index import ModelIndex, Times

#: A backlog is used with more devices than these. One machine has fewer.
MANY_DEVICES: Final = 24
#: Most models that a decision looks at because some time has passed.
_DUE: Final = 4
#: Most models without a plan that a decision tries on the changed devices, and most that it passes over.
_TRIED: Final = 8
_SEARCHED: Final = 64
_MAX_CHANGED: Final = 8  # devices on which these are tried
#: Seconds between two plans of a waiting model, at least. They grow with the number of waiting models.
_INTERVAL: Final = 1.0
_MODELS_PER_SECOND: Final = 200
#: Seconds until the next decision, if this one left models for later.
SOON: Final = 0.02

Rank = tuple[bool, float]


class _Planned(NamedTuple):
    rank: Rank
    missing: dict[str, int]  # bytes by device that the model still needs


class Promises(dict[str, int]):
    """Bytes by device that are promised to models that are more urgent than one model."""

    def __init__(self, promised: Callable[[str], int]) -> None:
        super().__init__()
        self._promised = promised

    def __missing__(self, device: str) -> int:
        self[device] = found = self._promised(device)
        return found


class Backlog:
    """The waiting models and the plans that are kept for them."""

    def __init__(
        self,
        index: ModelIndex,
        ledger: Ledger,
        devices: DeviceIndex,
        rank: Callable[[ModelState, float], Rank],
        many_devices: int,
    ) -> None:
        """With more devices than ``many_devices`` the backlog is used."""
        self._index = index
        self._ledger = ledger
        self._devices = devices
        self._rank = rank
        self._many_devices = many_devices
        self._due = Times()  # when the next plan of each waiting model is due
        self._plans: dict[ModelState, _Planned] = {}
        self._planned_on: dict[str, dict[ModelState, int]] = {}
        self._without_plan: set[ModelState] = set()
        self._by_urgency: list[ModelState] = []  # those without a plan, at `_sorted_at`
        self._sorted_at = float("-inf")
        self._started = False

    @property
    def in_use(self) -> bool:
        return len(self._ledger.capacities) > self._many_devices

    def reset(self) -> None:
        """Forget all plans, because they are not needed."""
        self._index.take_changed(float("-inf"))
        if self._started:
            for model in [*self._plans, *self._without_plan]:
                self._forget(model)
            self._started = False

    def take(self, now: float) -> list[tuple[ModelState, list[str] | None]]:
        """Return the models to plan now, the most urgent first, each with the devices to choose from.

        None stands for all devices.
        """
        changed = self._index.take_changed(now)
        if not self._started:
            changed.update(self._index.not_ready())
            self._started = True
        devices = self._devices.take_changed()
        found: dict[ModelState, list[str] | None] = {}
        for model in changed:
            self._forget(model)
        for model in changed:
            if not self._index.is_waiting(model):
                continue
            if model.wants_load(now):
                found[model] = None
            else:
                self._due.set(model, model.blocked_until)
        for device in devices:
            for model in self._planned_on.get(device, ()):
                found.setdefault(model, list(self._plans[model].missing))
        for model in self._due.take_due(now, _DUE):
            found[model] = None
        self._try_changed(devices, found, now)
        return sorted(found.items(), key=lambda each: (self._rank(each[0], now), each[0].number))

    def _try_changed(self, devices: set[str], found: dict[ModelState, list[str] | None], now: float) -> None:
        """Add urgent models without a plan that may be loaded on the changed devices."""
        if not devices or not self._without_plan:
            return
        if now >= self._sorted_at + _INTERVAL:
            order = [(self._rank(each, now), each.number, each) for each in self._without_plan]
            self._by_urgency = [each for _, _, each in sorted(order)]
            self._sorted_at = now
        tried = searched = 0
        for model in self._by_urgency:
            if model not in self._without_plan or model in found:
                continue
            among = [each for each in devices if self._devices.enough_memory(model.demand, each)]
            searched += 1
            if among and model.demand.devices == 1:
                found[model] = sorted(among)[:_MAX_CHANGED]
                tried += 1
            if tried == _TRIED or searched == _SEARCHED:
                return

    def promises(self, model: ModelState, now: float) -> Promises:
        """Return what is promised to models that are more urgent than this one."""
        rank = self._rank(model, now)
        return Promises(
            lambda device: sum(
                missing
                for other, missing in self._planned_on.get(device, {}).items()
                if other is not model and self._plans[other].rank < rank
            )
        )

    def has_plan(self, model: ModelState) -> bool:
        return model in self._plans

    def keep(self, model: ModelState, missing: dict[str, int], now: float, *, due: bool) -> None:
        """Keep the plan of a model: the bytes that are missing on its devices; empty: it has no plan.

        ``due`` sets the time of the next plan; without it, the time stays as it was.
        """
        self._drop_plan(model)
        if missing:
            self._plans[model] = _Planned(self._rank(model, now), missing)
            for device, memory in missing.items():
                self._planned_on.setdefault(device, {})[model] = memory
            self._without_plan.discard(model)
        else:
            self._without_plan.add(model)
        if due:
            waiting = len(self._plans) + len(self._without_plan)
            at = now + max(_INTERVAL, waiting / _MODELS_PER_SECOND)
            loses_patience = (model.waiting_since or now) + policy.patience(model)
            self._due.set(model, min(at, loses_patience) if loses_patience > now else at)

    def next_time(self, now: float) -> float | None:
        """Return when models are due for which there was no time in this decision; None if there are none."""
        at = self._due.first()
        return now + SOON if at is not None and at <= now else at

    def _forget(self, model: ModelState) -> None:
        self._drop_plan(model)
        self._without_plan.discard(model)
        self._due.set(model, None)

    def _drop_plan(self, model: ModelState) -> None:
        plan = self._plans.pop(model, None)
        if plan is not None:
            for device in plan.missing:
                del self._planned_on[device][model]
