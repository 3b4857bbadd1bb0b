"""What adding a model would change, which people see before they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from appliance.adding.fit import DeviceUse, Fit, find_fit
from appliance.adding.proposal import Proposal
from appliance.config import Config
from appliance.config.edit import add_entry, entry_text
from appliance.config.edit_file import Edited, preview
from appliance.domain.errors import ApplianceError
from appliance.domain.units import readable_bytes
from appliance.machine.hardware import Hardware, runs_nowhere


class AdditionPlan(msgspec.Struct, frozen=True):
    """A proposal with its edit of models.yaml, and where its model fits."""

    proposal: Proposal
    edited: Edited
    memory: int | None  # estimated bytes on a device; None if unknown
    fit: Fit | None  # None if `memory` is unknown
    problem: str | None  # why the model should not be added

    @property
    def yaml(self) -> str:
        return entry_text(self.proposal.entry)

    def check(self, *, force: bool) -> None:
        """Check that the model fits, unless ``force`` is set.

        Raises:
            ApplianceError: the model does not fit.
        """
        if self.problem is not None and not force:
            raise ApplianceError(self.problem)


def plan(
    proposal: Proposal,
    file: Path,
    config: Config,
    devices: Sequence[DeviceUse],
    hardware: Hardware,
) -> AdditionPlan:
    """Return what adding the proposal to ``file``, which contains ``config``, would change.

    Aliases that models of the config have already are left out of the entry.

    Raises:
        ConfigError: the file cannot take the entry.
    """
    proposal = _without_taken_aliases(proposal, config)
    edited = preview(file, lambda text: add_entry(text, proposal.entry, str(file)))
    needed = proposal.needed(hardware.kind)
    nowhere = runs_nowhere(proposal.config(), hardware)
    if needed is None or nowhere is not None:
        return AdditionPlan(proposal, edited, needed, None, nowhere)
    fit = find_fit(needed, devices)
    return AdditionPlan(proposal, edited, needed, fit, _problem(proposal.name, needed, fit, devices))


def _problem(name: str, needed: int, fit: Fit, devices: Sequence[DeviceUse]) -> str | None:
    if fit.state != "does not fit":
        return None
    largest = max(device.memory for device in devices)
    return (
        f"{name} needs about {readable_bytes(needed)}, and the largest device has {readable_bytes(largest)}: "
        "choose a smaller model, or add it anyway with --force"
    )


def _without_taken_aliases(proposal: Proposal, config: Config) -> Proposal:
    taken = {each for model in config.models for each in (model.name, *model.aliases)}
    entry: dict[str, Any] = dict(proposal.entry)
    if aliases := [alias for alias in entry.pop("aliases", ()) if alias not in taken]:
        entry["aliases"] = aliases
    return msgspec.structs.replace(proposal, entry=entry)


def uses_of_status(status: Mapping[str, Any]) -> list[DeviceUse]:
    """Return the devices of a running appliance from the body of ``GET /admin/status``."""
    pinned = {model["name"] for model in status["models"] if model["pinned"]}
    return [
        DeviceUse(
            device["name"],
            device["kind"],
            device["memory"],
            device["free"],
            {model: size for model, size in device["reserved"].items() if model not in pinned},
        )
        for device in status["devices"]
        if not device["is_main_memory"]
    ]
