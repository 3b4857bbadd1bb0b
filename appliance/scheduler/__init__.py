"""The scheduler: pure decisions about which predictions start and which models are loaded, asleep or evicted.

The engine reports facts with their times (a prediction is queued, a load has finished, a worker process
died), then calls ``Scheduler.decide``, which returns decisions: ``Start`` a prediction, ``Load``, ``Unload``,
``Sleep`` or ``Wake`` a model, ``Refuse`` a prediction. A model is COLD, LOADING, READY, DRAINING,
FALLING_ASLEEP, ASLEEP, WAKING or UNLOADING (``facts.Residency``). Nothing here does I/O or reads a clock.

In reading order:

- ``facts``: devices, what models ask for, their states, and the decisions.
- ``model``: what is known of one model; ``ledger``: who has reserved how many bytes of which device;
  ``footprints``: how much memory models were measured to take.
- ``policy``: urgency of a load, cost and benefit of an eviction; ``plan``: the devices for one load and the
models
  that leave them; ``placements``: which waiting models are loaded or woken now.
- ``transitions``: the only place where a model's state changes.
- ``children`` and ``deadlock``: predictions that wait for child predictions, and children that could never
start.
- ``rebalancing``: instances of one model share the predictions that wait for any of them.
- ``event_log``: the last changes, for people; ``scheduler``: puts everything together.
"""

from appliance.scheduler.event_log import Event, EventKind
from appliance.scheduler.facts import (
    Capacity,
    Decision,
    Demand,
    Load,
    Origin,
    Refuse,
    Residency,
    Sleep,
    SleepFootprint,
    SleepLevel,
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
    "Load",
    "Origin",
    "Refuse",
    "Residency",
    "Scheduler",
    "Sleep",
    "SleepFootprint",
    "SleepLevel",
    "Start",
    "Unload",
    "Wake",
]
