"""Alerts about the machine: what needs an operator, in one sentence each with what to do."""

from __future__ import annotations

from typing import Final, NamedTuple

from appliance.domain.units import readable_bytes
from appliance.protocols.admin_types import ApplianceStatusResponse, Decision, MachineResponse

#: The disk is nearly full below this share of free space, or below this many bytes.
_FREE_SHARE: Final = 0.05
_FREE_BYTES: Final = 2 * 1024**3
_LONGEST_REASON: Final = 160  # characters
#: Events of the scheduler after which an earlier failure of the same model counts no more.
_WELL: Final = ("ready", "woken", "adopted")


class Alert(NamedTuple):
    """A problem, and what to do."""

    severity: str  # bad or busy, a colour of style.css
    text: str
    link: str | None = None  # path of the page that has more


def find(
    status: ApplianceStatusResponse,
    machine: MachineResponse | None = None,
    decisions: list[Decision] | None = None,
) -> list[Alert]:
    """Return all alerts, the most severe first. ``decisions`` are newest first."""
    found = [Alert("bad", f"{each.name} is not served: {each.problem}") for each in status.not_served]
    if machine is not None:
        found += _of_machine(machine)
    found += _failed_loads(status, decisions or [])
    for model in status.models:
        memory = model.memory
        if not memory.fits:
            why = memory.problem or f"{model.name} does not fit on this machine."
            found.append(Alert("bad", why[:1].upper() + why[1:], f"/{model.name}"))
        elif memory.exceeds and memory.peak is not None:
            found.append(
                Alert(
                    "busy",
                    f"{model.name} used {readable_bytes(memory.peak)}, which is more than models.yaml "
                    "declares: raise its memory there.",
                    f"/{model.name}",
                )
            )
    if status.draining:
        found.append(Alert("busy", "The appliance is stopping: it accepts no new predictions."))
    return sorted(found, key=lambda alert: alert.severity)


def _of_machine(machine: MachineResponse) -> list[Alert]:
    found = []
    disk = machine.disk
    if disk.free < min(_FREE_BYTES, disk.total / 4) or disk.free < _FREE_SHARE * disk.total:
        found.append(
            Alert(
                "bad",
                f"The disk of {disk.folder} is nearly full: {readable_bytes(disk.free)} of "
                f"{readable_bytes(disk.total)} are free. Delete unused weights below, or shorten the "
                "retention in models.yaml.",
            )
        )
    failed = machine.webhooks.get("given_up", 0)
    if failed:
        noun = "1 webhook was" if failed == 1 else f"{failed:,} webhooks were"
        found.append(
            Alert(
                "busy",
                f"{noun} given up since the gateway started: the pages of the predictions have the reasons.",
                "/predictions",
            )
        )
    return found


def _failed_loads(status: ApplianceStatusResponse, decisions: list[Decision]) -> list[Alert]:
    """Return an alert for each served model whose last load has failed."""
    served = {model.name for model in status.models}
    newest: dict[str, Decision] = {}
    for each in decisions:
        if each.kind in {*_WELL, "failed"}:
            newest.setdefault(each.model, each)
    return [
        Alert("bad", f"{model} could not be loaded: {_first_line(each.reason)}", f"/{model}")
        for model, each in newest.items()
        if each.kind == "failed" and model in served
    ]


def _first_line(reason: str) -> str:
    """Return the start of a reason, which may go on with the last lines of a log."""
    line = reason.split("\n", 1)[0]
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON].rstrip()}…"
