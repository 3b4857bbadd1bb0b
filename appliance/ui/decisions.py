"""Events of the scheduler in plain words: a load and the evictions for it are one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from appliance.protocols.admin_types import Decision
from appliance.ui import markup
from appliance.ui.languages import gettext as _
from appliance.ui.sizes import readable_bytes

_LOADS: Final = ("load", "wake")
_LOADED: Final = ("ready", "woken")
_LEAVES: Final = ("unload", "sleep")
_STEPS: Final = ("drain", "unloaded", "asleep")  # of leaving: the sentence about leaving says it


class Sentence(NamedTuple):
    """A sentence, and the events that it is about, oldest first."""

    sentence: str
    at: str  # of the last event
    events: Sequence[Decision]

    @property
    def id(self) -> int:
        return self.events[0].number


def sentences(decisions: Iterable[Decision]) -> list[Sentence]:
    """Return sentences about ``decisions``, newest first. ``decisions`` are newest first as well."""
    made: list[Sentence] = []
    loading: dict[str, list[Decision]] = {}  # model -> its load, and what was evicted for it
    leaving: dict[str, list[Decision]] = {}  # model -> steps before it leaves
    for each in sorted(decisions, key=lambda decision: decision.number):
        if each.kind in _LOADS:
            loading.setdefault(each.model, []).append(each)
        elif each.kind in _LOADED or each.kind == "failed":
            events = [*loading.pop(each.model, ()), each]
            made.append(Sentence(_load(each, events), each.at, events))
        elif each.kind in _LEAVES:
            events = [*leaving.pop(each.model, ()), each]
            if each.on_behalf_of is None:
                made.append(Sentence(_left(each), each.at, events))
            else:
                loading.setdefault(each.on_behalf_of, []).extend(events)
        elif each.kind in _STEPS:
            if each.kind == "drain":
                leaving.setdefault(each.model, []).append(each)
            else:
                _append(each, made, loading.values())
        else:
            made.append(Sentence(each.text, each.at, [each]))
    for model, events in (*loading.items(), *leaving.items()):
        made.append(Sentence(_under_way(model, events), events[-1].at, events))
    return sorted(made, key=lambda each: -each.events[-1].number)


def _append(step: Decision, made: list[Sentence], loads: Iterable[list[Decision]]) -> None:
    """Add the last step of leaving to the events that it belongs to."""
    for events in loads:
        if any(each.model == step.model and each.kind in _LEAVES for each in events):
            events.append(step)
            return
    for number in range(len(made) - 1, -1, -1):
        found = made[number]
        if any(each.model == step.model and each.kind in _LEAVES for each in found.events):
            made[number] = found._replace(events=[*found.events, step])
            return
    made.append(Sentence(step.text, step.at, [step]))  # the log does not reach back to the beginning


def _load(end: Decision, events: Sequence[Decision]) -> str:
    if end.kind == "failed":
        reason = f": {end.reason}" if end.reason else ""
        said = _("could not load {model}").format(model=end.model) + reason
    elif end.seconds is None:
        said = _("loaded {model}") if end.kind == "ready" else _("woke {model}")
        said = said.format(model=end.model)
    else:
        said = _("loaded {model} in {time}") if end.kind == "ready" else _("woke {model} in {time}")
        said = said.format(model=end.model, time=markup.duration(end.seconds))
    return ", ".join([said, *_evictions(events)])


def _evictions(events: Sequence[Decision]) -> list[str]:
    words = {"unload": _("evicted {model}"), "sleep": _("put {model} to sleep")}
    return [
        words[each.kind].format(model=each.model) + _idle(each) for each in events if each.kind in _LEAVES
    ]


def _left(leave: Decision) -> str:
    reason = _idle(leave) if leave.reason.startswith("idle") or not leave.reason else f": {leave.reason}"
    said = _("unloaded {model}") if leave.kind == "unload" else _("put {model} to sleep")
    return said.format(model=leave.model) + reason


def _idle(leave: Decision) -> str:
    if leave.idle is None:
        return ""
    return " (" + _("idle {time}").format(time=markup.duration(leave.idle)) + ")"


def _under_way(model: str, events: Sequence[Decision]) -> str:
    load = next((each for each in events if each.kind in _LOADS), None)
    if load is not None:
        said = _("loading {model} ({size})").format(model=model, size=readable_bytes(load.memory))
        return ", ".join([said, *_evictions(events)])
    if events[-1].kind == "drain":
        return _("{model} will unload when its current runs finish").format(model=model)
    return ", ".join([_("making space for {model}").format(model=model), *_evictions(events)])
