"""Bytes by device: what there is, who holds it, and whether a device is busy loading or unloading.

Main memory is a device too, where there are others beside it: models that compute on the CPU are placed
there, and sleepers keep their weights there. What a model holds is what models.yaml declares, which stays, or
else an estimate, which what was measured takes the place of: see ``footprints``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.domain.errors import NeverFits
from appliance.scheduler.facts import Capacity, Demand, Origin, Residency
from appliance.scheduler.model import ModelState

_COMING: Final = frozenset({Residency.LOADING, Residency.WAKING})
_GOING: Final = frozenset({Residency.UNLOADING, Residency.FALLING_ASLEEP})


class Ledger:
    """A reservation is made before anything is done, and let go only when what frees it is confirmed."""

    def __init__(self, capacities: Sequence[Capacity]) -> None:
        """At least one device, each with a name of its own; main memory may be one beside the others."""
        self.capacities = {capacity.device: capacity for capacity in capacities}
        self.host = next((capacity.device for capacity in capacities if capacity.host), None)
        self._here: dict[str, dict[str, ModelState]] = {device: {} for device in self.capacities}
        self._free = {device: capacity.memory for device, capacity in self.capacities.items()}
        self._foreign = dict.fromkeys(self.capacities, 0)

    def reserve(self, model: ModelState, devices: tuple[str, ...], memory: int) -> None:
        """``memory`` bytes of each of these devices, in place of others, are the model's."""
        for device in model.devices:
            del self._here[device][model.name]
            self._free[device] += model.reserved
        model.devices, model.reserved = devices, memory
        for device in devices:
            self._here[device][model.name] = model
            self._free[device] -= memory

    def keep(self, model: ModelState, memory: int) -> None:
        """``memory`` bytes of main memory are the model's, beside its devices."""
        if self.host is None:
            return
        self._free[self.host] += model.main - memory
        model.main = memory
        if memory:
            self._here[self.host][model.name] = model
        elif self.host not in model.devices:
            self._here[self.host].pop(model.name, None)

    def release(self, model: ModelState) -> None:
        """Whatever it held is free."""
        self.reserve(model, (), 0)
        self.keep(model, 0)

    def held(self, model: ModelState, device: str) -> int:
        """Bytes of the device that the model holds."""
        if device in model.devices:
            return model.reserved
        return model.main if device == self.host else 0

    def places(self, demand: Demand) -> list[str]:
        """The devices that such a model may be placed on."""
        return [device for device, capacity in self.capacities.items() if demand.on_host is capacity.host]

    def older_sleepers(self, model: ModelState) -> list[ModelState]:
        """Those that hold main memory and were used longer ago than the model; of these the first first."""
        if self.host is None:
            return []
        older = [
            each
            for each in self.here(self.host)
            if each.state is Residency.ASLEEP and each.idle and each.last_used < model.last_used
        ]
        return sorted(older, key=lambda each: (each.last_used, each.name))

    def main_for(self, model: ModelState) -> int:
        """Bytes of main memory that the model could sleep in: free ones, and those of older sleepers."""
        if self.host is None:
            return 0
        older = sum(each.main for each in self.older_sleepers(model))
        return self.free(self.host) + self.leaving_main() + older

    def leaving_main(self) -> int:
        """Bytes of main memory that sleepers give back, which are being unloaded."""
        if self.host is None:
            return 0
        here = self._here[self.host].values()
        return sum(each.main for each in here if each.state is Residency.UNLOADING)

    def resize(self, model: ModelState, memory: int) -> int:
        """Let a model that is placed hold ``memory`` bytes, or more than now only as far as they are free.

        Returns what it holds.
        """
        room = min(self.free(device) for device in model.devices)
        memory = min(memory, model.reserved + max(0, room))
        self.reserve(model, model.devices, memory)
        return memory

    def foreign(self, device: str) -> int:
        """Bytes of the device that programs take which are not the appliance's."""
        return self._foreign[device]

    def used(self, device: str, memory: int) -> bool:
        """So many bytes of the device are in use by anybody; what no model holds of them is foreign.

        Returns whether that has changed by more than a hundredth of the device.
        """
        capacity = self.capacities[device].memory
        held = sum(self.reserved(device).values())
        before, foreign = self._foreign[device], min(capacity, max(0, memory - held))
        self._foreign[device] = foreign
        self._free[device] += before - foreign
        return abs(foreign - before) > capacity // 100

    def limit(self, model: ModelState) -> int:
        """Bytes of each of its devices that a placed model may take before its host is ended.

        What models.yaml declares is a bound. An estimate may be wrong, so what nobody holds may be taken too.
        """
        if model.demand.origin is Origin.DECLARED:
            return model.reserved
        return model.reserved + max(0, min(self.free(device) for device in model.devices))

    def here(self, device: str) -> list[ModelState]:
        """The models that hold bytes of the device."""
        return list(self._here[device].values())

    def free(self, device: str) -> int:
        """Bytes of the device that nobody holds; negative while others take what models have reserved."""
        return self._free[device]

    def reserved(self, device: str) -> dict[str, int]:
        """Bytes by model on one device."""
        return {name: self.held(model, device) for name, model in self._here[device].items()}

    def loading(self, device: str) -> ModelState | None:
        """What is being loaded there, or woken.

        Nothing may leave meanwhile: engines measure the memory that they find.
        """
        for each in self._here[device].values():
            if each.state in _COMING and device in each.devices:
                return each
        return None

    def unloading(self, device: str) -> bool:
        """Whether something is being unloaded there, or falls asleep."""
        return any(each.state in _GOING and device in each.devices for each in self._here[device].values())

    def still(self, devices: Sequence[str]) -> bool:
        """Whether nothing is being loaded on these devices."""
        return all(self.loading(device) is None for device in devices)

    def roomy(self, demand: Demand) -> list[str]:
        """The devices that have the bytes now."""
        return [
            device
            for device in self.places(demand)
            if self.free(device) >= demand.bytes_on(self.capacities[device])
        ]

    def need(self, demand: Demand, devices: Sequence[str]) -> int:
        """Bytes that the model gets on each of these devices: what the smallest of them can give."""
        return min(demand.bytes_on(self.capacities[device]) for device in devices)

    def check_fits(self, model: ModelState) -> None:
        """Raise ``NeverFits`` with the numbers if no devices could ever hold it beside the pinned."""
        demand = model.demand
        if model.devices and model.state is not Residency.ASLEEP:
            return
        left = self._beside_pinned(model)
        if len(self.fitting(model)) >= demand.devices:
            return
        sizes = ", ".join(f"{device} has {self.capacities[device].memory:,}" for device in left)
        needs = f"{demand.memory:,} bytes" if demand.memory is not None else f"a share of {demand.share}"
        names = sorted({each.name for device in left for each in self.here(device) if each.pinned})
        beside = f", of which {', '.join(names)} is never unloaded" if names else ""
        advice = "lower its memory in models.yaml or choose a smaller model"
        if demand.origin is Origin.ESTIMATED:
            needs = f"an estimated {needs}"
            advice = "say with memory in models.yaml what it takes, if it is less, or choose a smaller model"
        raise NeverFits(
            f"model {model.name} needs {needs} on {demand.devices} device(s), but {sizes} bytes{beside}; "
            f"{advice}"
        )

    def fitting(self, model: ModelState) -> list[str]:
        """The devices that could hold it, or a part of it, beside the pinned."""
        left = self._beside_pinned(model)
        return [device for device in left if model.demand.bytes_on(self.capacities[device]) <= left[device]]

    def most(self, model: ModelState) -> int:
        """Bytes on each of its devices that the model could ever get, beside the pinned."""
        left = sorted(self._beside_pinned(model).values(), reverse=True)
        return left[min(model.demand.devices, len(left)) - 1] if left else 0

    def _beside_pinned(self, model: ModelState) -> dict[str, int]:
        left = {}
        for device in self.places(model.demand):
            here = (each for each in self._here[device].values() if each.pinned and each is not model)
            left[device] = self.capacities[device].memory - sum(self.held(each, device) for each in here)
        return left
