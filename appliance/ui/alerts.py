"""Alerts about the machine: what needs an operator, in one sentence each with what to do."""

from __future__ import annotations

from typing import Final, NamedTuple

from appliance.protocols.admin_types import ApplianceStatusResponse, Decision, MachineResponse
from appliance.ui.languages import gettext as _
from appliance.ui.languages import ngettext
from appliance.ui.sizes import readable_bytes

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
    not_served = _("{model} is not served: {problem}")
    found = [
        Alert("bad", not_served.format(model=each.name, problem=each.problem)) for each in status.not_served
    ]
    if machine is not None:
        found += _of_machine(machine)
    found += _failed_loads(status, decisions or [])
    for model in status.models:
        memory = model.memory
        if not memory.fits:
            why = memory.problem or _("{model} does not fit on this machine.").format(model=model.name)
            found.append(Alert("bad", why[:1].upper() + why[1:], f"/{model.name}"))
        elif memory.exceeds and memory.peak is not None:
            found.append(
                Alert(
                    "busy",
                    _(
                        "{model} used {size}, which is more than models.yaml declares: "
                        "raise its memory there."
                    ).format(model=model.name, size=readable_bytes(memory.peak)),
                    f"/{model.name}",
                )
            )
    if status.draining:
        found.append(Alert("busy", _("The appliance is stopping: it accepts no new predictions.")))
    return sorted(found, key=lambda alert: alert.severity)


def _of_machine(machine: MachineResponse) -> list[Alert]:
    found = []
    disk = machine.disk
    if disk.free < min(_FREE_BYTES, disk.total / 4) or disk.free < _FREE_SHARE * disk.total:
        found.append(
            Alert(
                "bad",
                _(
                    "The disk of {folder} is nearly full: {free} of {total} are free. Delete unused weights "
                    "below, or shorten the retention in models.yaml."
                ).format(
                    folder=disk.folder, free=readable_bytes(disk.free), total=readable_bytes(disk.total)
                ),
            )
        )
    failed = machine.webhooks.get("given_up", 0)
    if failed:
        found.append(
            Alert(
                "busy",
                ngettext(
                    "{number} webhook was given up since the gateway started: the page of the prediction "
                    "has the reason.",
                    "{number} webhooks were given up since the gateway started: the pages of the "
                    "predictions have the reasons.",
                    failed,
                ).format(number=f"{failed:,}"),
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
    failure = _("{model} could not be loaded: {reason}")
    return [
        Alert("bad", failure.format(model=model, reason=_first_line(each.reason)), f"/{model}")
        for model, each in newest.items()
        if each.kind == "failed" and model in served
    ]


def _first_line(reason: str) -> str:
    """Return the start of a reason, which may go on with the last lines of a log."""
    line = reason.split("\n", 1)[0]
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON].rstrip()}…"
