"""The cases of the campaign, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from scripts.faults import processes, resources, volumes
from scripts.faults.ledger import Tally
from scripts.faults.states import STATES
from scripts.faults.testbed import Caller, Testbed


class Settings(NamedTuple):
    """Settings of all cases."""

    short: bool
    patience: float  # longest wait in seconds
    stopped: float  # seconds that a process is stopped


class Case(NamedTuple):
    """One fault. ``shared`` runs on a shared appliance, ``own`` starts a separate one in a folder."""

    name: str
    shared: Callable[[Testbed, Settings, Tally], float | None] | None = None
    own: Callable[[Path, float, Tally], float | None] | None = None
    ui: bool = False  # whether the case needs the UI


def _process(role: str, fault: str, state: str) -> Case:
    def run(testbed: Testbed, settings: Settings, tally: Tally) -> float | None:
        with Caller(testbed):
            heal = STATES[state](testbed)
            over = processes.put(testbed.appliance, role, fault, settings.stopped)
            seconds = testbed.recovered(over)
            heal()
        testbed.check(tally, well=seconds is not None)
        return seconds

    return Case(f"{role}/{fault}/{state}", shared=run, ui=role == "ui")


def _volume(name: str, measure: Callable[..., float | None]) -> Case:
    def run(testbed: Testbed, settings: Settings, tally: Tally) -> float | None:
        return measure(testbed, tally, short=settings.short)

    return Case(name, shared=run)


CASES: Final = (
    *(
        _process(role, fault, state)
        for fault in processes.FAULTS
        for role in processes.ROLES
        for state in STATES
    ),
    _volume("webhooks/hanging", volumes.hanging_receivers),
    _volume("outputs/large", volumes.large_outputs),
    _volume("logs/long", volumes.long_logs),
    _volume("predictions/many", volumes.many_predictions),
    Case("disk/full", own=resources.disk_full),
    Case("clock/forward", own=resources.clock_forward),
    Case("clock/back", own=resources.clock_back),
    Case("weights/missing", own=resources.weights_missing),
    Case("weights/changed", own=resources.weights_changed),
    Case("database/empty", own=resources.database_empty),
    Case("descriptors/256", own=resources.few_descriptors),
)
#: Cases of ``--short``: one appliance, under a minute.
SHORT: Final = frozenset(
    {"gateway/kill/running", "worker/kill/streaming", "zygote/kill/starting", "replica/stop/webhook",
     "gateway/stop/uploading", "logs/long"}
)  # fmt: skip
