"""Which prediction runs, which model is loaded where, and which makes room: pure decisions.

``facts`` has what goes in and comes out, ``model`` what is known of one model, ``ledger`` who holds which
bytes, ``footprints`` what models were found to take, ``policy`` what a model's place is worth, ``plan`` where
one could be loaded and who would make room, ``placements`` which of those that wait are, ``moves`` changes a
model's residency with all that goes with it, ``siblings`` has instances of one model share what waits for
them, ``progress`` says what can get on where predictions wait for parts, ``journal`` what was decided, and
``scheduler`` puts them together.
"""

from appliance.scheduler.event_log import Event, EventKind
from appliance.scheduler.facts import (
    Capacity,
    Decision,
    Demand,
    Level,
    Load,
    Origin,
    Refuse,
    Residency,
    Sleep,
    SleepFootprint,
    Start,
    Unload,
    Wake,
)
from appliance.scheduler.footprints import MARGIN, Footprint
from appliance.scheduler.policy import BACKOFF, MIN_RESIDENCY, PATIENCE
from appliance.scheduler.scheduler import Scheduler

__all__ = [
    "BACKOFF",
    "MARGIN",
    "MIN_RESIDENCY",
    "PATIENCE",
    "Capacity",
    "Decision",
    "Demand",
    "Event",
    "EventKind",
    "Footprint",
    "Level",
    "Load",
    "Origin",
    "Refuse",
    "Residency",
    "Scheduler",
    "Sleep",
    "SleepFootprint",
    "Start",
    "Unload",
    "Wake",
]
