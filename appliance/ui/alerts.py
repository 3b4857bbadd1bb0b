"""Alerts about the machine: what needs an operator, in one sentence each with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

from appliance.protocols.admin_types import (
    ApplianceStatusResponse,
    Decision,
    HistoryResponse,
    MachineResponse,
)
from appliance.ui.languages import gettext as _
from appliance.ui.languages import ngettext
from appliance.ui.sizes import readable_bytes

#: The disk is nearly full below this share of free space, or below this many bytes.
_FREE_SHARE: Final = 0.05
_FREE_BYTES: Final = 2 * 1024**3
_LONGEST_REASON: Final = 160  # characters
#: Problems that must last as long, in seconds, as the alert rules for Prometheus say.
_HOT_SECONDS: Final = 5 * 60
_STUCK_SECONDS: Final = 15 * 60
_HOT: Final = 85.0  # degrees Celsius
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
    history: HistoryResponse | None = None,
) -> list[Alert]:
    """Return all alerts, the most severe first. ``decisions`` are newest first."""
    not_served = _("{model} is not served: {problem}")
    found = [
        Alert("bad", not_served.format(model=each.name, problem=each.problem)) for each in status.not_served
    ]
    if machine is not None:
        found += _of_machine(machine)
    found += _failed_loads(status, decisions or [])
    if history is not None:
        found += _lasting(history)
    if not (status.devices or status.runs_models):
        found.append(Alert("bad", _("No node is ready, so predictions wait until one joins.")))
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


def _lasting(history: HistoryResponse) -> Iterator[Alert]:
    """Yield an alert for each problem that has lasted for minutes."""
    last = _last(history, _HOT_SECONDS)
    for device in history.devices if last else ():
        heat = [value or 0.0 for value in (device.temperature or [])[last:]]
        if heat and min(heat) > _HOT:
            text = _(
                "{device} has been hotter than {number} °C for 5 minutes: check the fans, and the air around "
                "the machine."
            )
            yield Alert("bad", text.format(device=device.name, number=f"{_HOT:.0f}"))
    last = _last(history, _STUCK_SECONDS)
    for model in history.models if last else ():
        running, queued = model.running[last:], model.queued[last:]
        if min(queued) > 0 and not any(running):
            text = _("Predictions of {model} have waited for 15 minutes, and none runs: see the decisions.")
            yield Alert("bad", text.format(model=model.name), f"/{model.name}")
        if model.kv_cache is not None and min(running) > 0 and not any(model.tokens_per_second[last:]):
            text = _(
                "{model} runs predictions, but has generated no token for 15 minutes: see its log. Unload it "
                "to restart it."
            )
            yield Alert("bad", text.format(model=model.name), f"/{model.name}")


def _last(history: HistoryResponse, seconds: float) -> int | None:
    """Return the index of the first sample of the last ``seconds``; None if the history is shorter."""
    at = [datetime.fromisoformat(each).timestamp() for each in history.at]
    if not at or at[0] > at[-1] - seconds:
        return None
    return next(number for number, each in enumerate(at) if each > at[-1] - seconds)


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
