"""Bytes by device: what there is, who holds it, and whether a device is busy loading or unloading."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.errors import NeverFits
from appliance.scheduler.facts import Capacity, Demand, Residency
from appliance.scheduler.model import Model


class Ledger:
    """A reservation is made when a load is decided, and let go only when the unload is confirmed."""

    def __init__(self, capacities: Sequence[Capacity]) -> None:
        """At least one device, each with a name of its own."""
        self.capacities = {capacity.device: capacity for capacity in capacities}
        self._here: dict[str, dict[str, Model]] = {device: {} for device in self.capacities}
        self._free = {device: capacity.memory for device, capacity in self.capacities.items()}

    def reserve(self, model: Model, devices: tuple[str, ...], memory: int) -> None:
        """``memory`` bytes of each of these devices are the model's."""
        self.release(model)
        model.devices, model.reserved = devices, memory
        for device in devices:
            self._here[device][model.name] = model
            self._free[device] -= memory

    def release(self, model: Model) -> None:
        """Whatever it held is free."""
        for device in model.devices:
            del self._here[device][model.name]
            self._free[device] += model.reserved
        model.devices, model.reserved = (), 0

    def here(self, device: str) -> list[Model]:
        """The models that hold bytes of the device."""
        return list(self._here[device].values())

    def free(self, device: str) -> int:
        """Bytes of the device that no model has reserved."""
        return self._free[device]

    def reserved(self, device: str) -> dict[str, int]:
        """Bytes by model on one device."""
        return {name: model.reserved for name, model in self._here[device].items()}

    def loading(self, device: str) -> Model | None:
        """What is being loaded there.

        Nothing may be unloaded meanwhile: engines measure the memory that they find.
        """
        for each in self._here[device].values():
            if each.state is Residency.LOADING:
                return each
        return None

    def unloading(self, device: str) -> bool:
        """Whether something is being unloaded there."""
        return any(each.state is Residency.UNLOADING for each in self._here[device].values())

    def still(self, devices: Sequence[str]) -> bool:
        """Whether nothing is being loaded on these devices."""
        return all(self.loading(device) is None for device in devices)

    def roomy(self, demand: Demand) -> list[str]:
        """The devices that have the bytes now."""
        return [
            device
            for device, capacity in self.capacities.items()
            if self.free(device) >= demand.bytes_on(capacity)
        ]

    def need(self, demand: Demand, devices: Sequence[str]) -> int:
        """Bytes that the model gets on each of these devices: what the smallest of them can give."""
        return min(demand.bytes_on(self.capacities[device]) for device in devices)

    def check_fits(self, model: Model) -> None:
        """Raise ``NeverFits`` with the numbers if no devices could ever hold it beside the pinned."""
        demand = model.demand
        if model.devices:
            return
        left = {}
        for device, capacity in self.capacities.items():
            pinned = sum(each.reserved for each in self._here[device].values() if each.pinned)
            left[device] = capacity.memory - pinned
        roomy = [device for device in left if demand.bytes_on(self.capacities[device]) <= left[device]]
        if len(roomy) >= demand.devices:
            return
        sizes = ", ".join(f"{device} has {capacity.memory:,}" for device, capacity in self.capacities.items())
        needs = f"{demand.memory:,} bytes" if demand.memory is not None else f"a share of {demand.share}"
        names = sorted({each.name for device in left for each in self.here(device) if each.pinned})
        beside = f", of which {', '.join(names)} is never unloaded" if names else ""
        raise NeverFits(
            f"model {model.name} needs {needs} on {demand.devices} device(s), but {sizes} bytes{beside}; "
            "lower its memory in models.yaml or choose a smaller model"
        )
