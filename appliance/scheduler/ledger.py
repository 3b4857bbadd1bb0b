"""Reserved bytes of every device, by model.

A reservation is made before a load starts, and freed only when the unload is confirmed, so no device is
overbooked. On a machine with GPUs, main memory is a device too: for models that compute on the CPU, and for
the weights of sleeping models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance.domain.errors import ModelTooLarge
from appliance.domain.units import readable_bytes
from appliance.scheduler.facts import Capacity, Demand, Origin, Residency
from appliance.scheduler.model import ModelState

_COMING: Final = frozenset({Residency.LOADING, Residency.WAKING})
_GOING: Final = frozenset({Residency.UNLOADING, Residency.FALLING_ASLEEP})


class Ledger:
    """Memory of every device: reserved, free, and used by other programs (foreign). Sizes are in bytes."""

    def __init__(self, capacities: Sequence[Capacity]) -> None:
        """Create a ledger with all memory free. ``capacities`` has at least one device; names are unique."""
        self.capacities = {capacity.device: capacity for capacity in capacities}
        #: The name of the main-memory device; None on a machine without GPUs.
        self.main_memory = next((each.device for each in capacities if each.is_main_memory), None)
        self._models: dict[str, dict[str, ModelState]] = {device: {} for device in self.capacities}
        self._free = {device: capacity.memory for device, capacity in self.capacities.items()}
        self._foreign = dict.fromkeys(self.capacities, 0)

    # -- changes -----------------------------------------------------------------------------------------

    def reserve(self, model: ModelState, devices: tuple[str, ...], memory: int) -> None:
        for device in model.devices:
            del self._models[device][model.name]
            self._free[device] += model.reserved
        model.devices, model.reserved = devices, memory
        for device in devices:
            self._models[device][model.name] = model
            self._free[device] -= memory

    def reserve_main_memory(self, model: ModelState, memory: int) -> None:
        """Replace the reservation of main memory for the weights of a sleeping model."""
        if self.main_memory is None:
            return
        self._free[self.main_memory] += model.main_memory - memory
        model.main_memory = memory
        if memory:
            self._models[self.main_memory][model.name] = model
        elif self.main_memory not in model.devices:
            self._models[self.main_memory].pop(model.name, None)

    def release(self, model: ModelState) -> None:
        self.reserve(model, (), 0)
        self.reserve_main_memory(model, 0)

    def resize(self, model: ModelState, memory: int) -> int:
        """Change the reservation of a loaded model, as far as memory is free; return the new reservation."""
        free = min(self.free(device) for device in model.devices)
        memory = min(memory, model.reserved + max(0, free))
        self.reserve(model, model.devices, memory)
        return memory

    def record_use(self, device: str, used: int) -> bool:
        """Compute the memory that other programs use: ``used`` minus all reservations.

        Returns whether the result has changed by more than a hundredth of the device's memory.
        """
        capacity = self.capacities[device].memory
        reserved = sum(self.reserved(device).values())
        before, foreign = self._foreign[device], min(capacity, max(0, used - reserved))
        self._foreign[device] = foreign
        self._free[device] += before - foreign
        return abs(foreign - before) > capacity // 100

    # -- questions about a device ------------------------------------------------------------------------

    def free(self, device: str) -> int:
        """Return the unreserved bytes; negative while other programs use reserved memory."""
        return self._free[device]

    def foreign(self, device: str) -> int:
        return self._foreign[device]

    def models_on(self, device: str) -> list[ModelState]:
        return list(self._models[device].values())

    def reserved(self, device: str) -> dict[str, int]:
        return {name: self.reserved_by(model, device) for name, model in self._models[device].items()}

    def loading(self, device: str) -> ModelState | None:
        """Return the model that is being loaded or woken on the device, if any.

        No other model may leave the device meanwhile, because engines measure free memory while they load.
        """
        for each in self._models[device].values():
            if each.state in _COMING and device in each.devices:
                return each
        return None

    def none_loading(self, devices: Sequence[str]) -> bool:
        return all(self.loading(device) is None for device in devices)

    def unloading(self, device: str) -> bool:
        return any(each.state in _GOING and device in each.devices for each in self._models[device].values())

    # -- questions about a model -------------------------------------------------------------------------

    def reserved_by(self, model: ModelState, device: str) -> int:
        if device in model.devices:
            return model.reserved
        return model.main_memory if device == self.main_memory else 0

    def memory_for(self, demand: Demand, devices: Sequence[str]) -> int:
        """Return the bytes that a model with this demand reserves on each of ``devices``.

        A demand that is a fraction of a device is computed for the smallest of the devices.
        """
        return min(demand.bytes_on(self.capacities[device]) for device in devices)

    def limit(self, model: ModelState) -> int:
        """Return the bytes of each device that a loaded model may use before its worker process is killed.

        The limit is the reservation. If the size was not declared in models.yaml, free memory is added,
        because the estimate may be too low.
        """
        if model.demand.origin is Origin.DECLARED:
            return model.reserved
        return model.reserved + max(0, min(self.free(device) for device in model.devices))

    def eligible_devices(self, demand: Demand) -> list[str]:
        """Return all GPUs, or main memory for a model that computes on the CPU."""
        return [
            device for device, capacity in self.capacities.items() if demand.on_cpu is capacity.is_main_memory
        ]

    def devices_free_for(self, demand: Demand) -> list[str]:
        return [
            device
            for device in self.eligible_devices(demand)
            if self.free(device) >= demand.bytes_on(self.capacities[device])
        ]

    def devices_large_enough(self, model: ModelState) -> list[str]:
        """Return the devices that are large enough for the model if only pinned models stay loaded."""
        left = self._beside_pinned(model)
        return [device for device in left if model.demand.bytes_on(self.capacities[device]) <= left[device]]

    def most_available(self, model: ModelState) -> int:
        """Return the most bytes of each device that the model gets if only pinned models stay loaded."""
        left = sorted(self._beside_pinned(model).values(), reverse=True)
        return left[min(model.demand.devices, len(left)) - 1] if left else 0

    def _beside_pinned(self, model: ModelState) -> dict[str, int]:
        left = {}
        for device in self.eligible_devices(model.demand):
            pinned = (each for each in self._models[device].values() if each.pinned and each is not model)
            left[device] = self.capacities[device].memory - sum(
                self.reserved_by(each, device) for each in pinned
            )
        return left

    def check_fits(self, model: ModelState) -> None:
        """Raise ``ModelTooLarge`` if the devices are too small for the model beside all pinned models."""
        demand = model.demand
        if model.devices and model.state is not Residency.ASLEEP:
            return
        if len(self.devices_large_enough(model)) >= demand.devices:
            return
        devices = self.eligible_devices(demand)
        sizes = ", ".join(f"{each} has {readable_bytes(self.capacities[each].memory)}" for each in devices)
        needs = f"{demand.share:.0%}" if demand.memory is None else readable_bytes(demand.memory)
        pinned = sorted({each.name for device in devices for each in self.models_on(device) if each.pinned})
        beside = f", partly reserved for the pinned models {', '.join(pinned)}" if pinned else ""
        advice = "lower its memory in models.yaml, or choose a smaller model"
        if demand.origin is Origin.ESTIMATED:
            needs = f"an estimated {needs}"
            advice = "declare its memory in models.yaml if it needs less, or choose a smaller model"
        raise ModelTooLarge(
            f"model {model.name} needs {needs}{demand.on_each}, but {sizes}{beside}: {advice}"
        )

    # -- questions about main memory for sleeping models -------------------------------------------------

    def older_sleepers(self, model: ModelState) -> list[ModelState]:
        """Return sleeping models that use main memory and were used before ``model``, oldest use first."""
        if self.main_memory is None:
            return []
        older = [
            each
            for each in self.models_on(self.main_memory)
            if each.state is Residency.ASLEEP and each.idle and each.last_used < model.last_used
        ]
        return sorted(older, key=lambda each: (each.last_used, each.name))

    def main_memory_for(self, model: ModelState) -> int:
        """Return the bytes of main memory free for the model's weights if ``older_sleepers`` are unloaded."""
        if self.main_memory is None:
            return 0
        older = sum(each.main_memory for each in self.older_sleepers(model))
        return self.free(self.main_memory) + self.main_memory_being_freed() + older

    def main_memory_being_freed(self) -> int:
        if self.main_memory is None:
            return 0
        models = self._models[self.main_memory].values()
        return sum(each.main_memory for each in models if each.state is Residency.UNLOADING)
