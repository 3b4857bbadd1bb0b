"""Plans of the waiting models if there are many devices, and which models each decision plans again.

With few devices, each decision plans the load of every waiting model. With many devices that takes too long.
So plans are kept, and a decision plans a model again only if

- the model has changed,
- the devices of its plan have changed,
- it is one of the most urgent models, and a device that may have the memory for it has changed,
- or its last plan is about a second old, because costs and benefits change with time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from appliance.scheduler import policy
from appliance.scheduler.device_index import DeviceIndex
from appliance.scheduler.ledger import Ledger
from appliance.scheduler.model import ModelState
from appliance.scheduler.model_index import DueTimes, ModelIndex

#: The backlog is used if there are more devices than this. One machine has fewer.
MANY_DEVICES: Final = 24
#: Models that one decision plans because their last plan is old.
_MAX_DUE: Final = 4
#: Models without a plan: how many one decision plans for changed devices, and how many it checks for that.
_MAX_PLANNED: Final = 8
_MAX_CHECKED: Final = 64
_MAX_CHANGED_DEVICES: Final = 8  # that each of these models is planned for
#: Least seconds between two plans of a waiting model that has not changed.
_INTERVAL: Final = 1.0
#: Old plans that are made again in a second. If more models wait, the interval is longer.
_MODELS_PER_SECOND: Final = 200
#: Seconds until the next decision, if this one has planned `_MAX_DUE` models and others are due.
SOON: Final = 0.02

Rank = tuple[bool, float]


class _KeptPlan(NamedTuple):
    rank: Rank  # of the model when the plan was made
    missing: dict[str, int]  # bytes by device that the model still needs


class ReservedForOthers(dict[str, int]):
    """Bytes by device that are kept for more urgent models, computed when a device is first asked for."""

    def __init__(self, compute: Callable[[str], int]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, device: str) -> int:
        self[device] = found = self._compute(device)
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
        """Start without plans. The backlog is used if there are more devices than ``many_devices``."""
        self._index = index
        self._ledger = ledger
        self._devices = devices
        self._rank = rank
        self._many_devices = many_devices
        self._due = DueTimes()  # when the next plan of each waiting model is due
        self._plans: dict[ModelState, _KeptPlan] = {}
        self._planned_on: dict[str, dict[ModelState, int]] = {}  # by device: missing bytes by model
        self._without_plan: set[ModelState] = set()
        self._by_urgency: list[ModelState] = []  # the models without a plan at `_sorted_at`
        self._sorted_at = float("-inf")
        self._started = False

    @property
    def in_use(self) -> bool:
        return len(self._ledger.capacities) > self._many_devices

    def reset(self) -> None:
        """Forget all plans, because there are only a few devices now."""
        self._index.take_changed(float("-inf"))
        if self._started:
            for model in [*self._plans, *self._without_plan]:
                self.forget(model)
            self._started = False

    def models_to_plan(self, now: float) -> list[tuple[ModelState, list[str] | None]]:
        """Return the models to plan in this decision, the most urgent first. Call this once a decision.

        Each comes with the devices to choose from; None stands for all devices.
        """
        changed = self._index.take_changed(now)
        if not self._started:
            changed.update(self._index.not_ready())
            self._started = True
        devices = self._devices.take_changed()
        found: dict[ModelState, list[str] | None] = {}
        for model in changed:
            self.forget(model)
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
        for model in self._due.take_due(now, _MAX_DUE):
            found[model] = None
        self._add_models_without_plan(devices, found, now)
        return sorted(found.items(), key=lambda each: (self._rank(each[0], now), each[0].number))

    def _add_models_without_plan(
        self, devices: set[str], found: dict[ModelState, list[str] | None], now: float
    ) -> None:
        """Add urgent models without a plan to ``found`` that the changed ``devices`` may have memory for."""
        if not devices or not self._without_plan:
            return
        if now >= self._sorted_at + _INTERVAL:
            order = [(self._rank(each, now), each.number, each) for each in self._without_plan]
            self._by_urgency = [each for _, _, each in sorted(order)]
            self._sorted_at = now
        added = checked = 0
        for model in self._by_urgency:
            if model not in self._without_plan or model in found:
                continue
            among = [each for each in devices if self._devices.enough_memory(model.demand, each)]
            checked += 1
            if among and model.demand.devices == model.demand.machines == 1:
                found[model] = sorted(among)[:_MAX_CHANGED_DEVICES]
                added += 1
            if added == _MAX_PLANNED or checked == _MAX_CHECKED:
                return

    def reserved_for_others(self, model: ModelState, now: float) -> ReservedForOthers:
        """Return the bytes by device that the plans of more urgent models need."""
        rank = self._rank(model, now)
        return ReservedForOthers(
            lambda device: sum(
                missing
                for other, missing in self._planned_on.get(device, {}).items()
                if other is not model and self._plans[other].rank < rank
            )
        )

    def has_plan(self, model: ModelState) -> bool:
        return model in self._plans

    def store_plan(
        self, model: ModelState, missing: dict[str, int], now: float, *, new_due_time: bool
    ) -> None:
        """Store the devices of a model's plan, with the bytes that are missing there; empty: it has no plan.

        With ``new_due_time``, the time of the next plan is set; otherwise it stays as it was.
        """
        self._drop_plan(model)
        if missing:
            self._plans[model] = _KeptPlan(self._rank(model, now), missing)
            for device, memory in missing.items():
                self._planned_on.setdefault(device, {})[model] = memory
            self._without_plan.discard(model)
        else:
            self._without_plan.add(model)
        if new_due_time:
            waiting = len(self._plans) + len(self._without_plan)
            at = now + max(_INTERVAL, waiting / _MODELS_PER_SECOND)
            patience_ends = (model.waiting_since or now) + policy.patience(model)
            self._due.set(model, min(at, patience_ends) if patience_ends > now else at)

    def next_time(self, now: float) -> float | None:
        """Return when the next plan is due, at least ``SOON`` from now; None if none is due at any time."""
        at = self._due.earliest()
        return now + SOON if at is not None and at <= now else at

    def forget(self, model: ModelState) -> None:
        """Drop the plan of a model, and the time of its next plan."""
        self._drop_plan(model)
        self._without_plan.discard(model)
        self._due.set(model, None)

    def _drop_plan(self, model: ModelState) -> None:
        plan = self._plans.pop(model, None)
        if plan is not None:
            for device in plan.missing:
                del self._planned_on[device][model]
