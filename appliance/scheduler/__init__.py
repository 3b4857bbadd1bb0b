"""Decides which predictions start, which models are loaded where, and which leave for others.

The scheduler is pure: no I/O, no clock, no tasks. The engine (``appliance.gateway.engine``) carries its
decisions out, and so does the simulator (``scripts/simulate``).

**In go facts**, each with its time: devices and what models ask for (``Capacity``, ``Demand``), and what
happened to predictions (``queued``, ``finished``, ...), to models (``loaded``, ``unloaded``, ``lost``, ...)
and to devices (``device_used``).

**Out come decisions**, from ``Scheduler.decide``:

- ``Start`` a prediction on a model that is ready, or ``Refuse`` a child prediction that could never start;
- ``Load`` a model on devices, or ``Unload`` it;
- put a model to ``Sleep`` (its weights leave the devices, its worker process stays), or ``Wake`` it.

``Scheduler.next_wakeup`` says when to call ``decide`` although nothing has happened.

**A model** is in one of these states (``Residency``)::

    COLD --> LOADING --> READY --> (DRAINING) --> UNLOADING --> COLD
                           ^             |
                           |             v
                         WAKING      FALLING_ASLEEP
                           ^             |
                           |             v
                           +--------- ASLEEP --> UNLOADING --> COLD

An idle model skips DRAINING. If its worker process dies, the model becomes COLD from any state.

Files, in reading order:

- ``facts``: devices, demands, states and decisions
- ``model``: everything known of one model
- ``scheduler``: the class that puts all together; read ``decide`` first
- ``placements``: which waiting models are loaded, and who is evicted for them
- ``plan``: the best devices and victims for one model
- ``policy``: the numbers behind that, such as costs, patience and the bound on thrashing
- ``ledger``: reserved bytes of every device
- ``transitions``: every change of a model's state
- ``footprints``: measured memory of models
- ``rebalancing``: sharing of predictions among instances of one model
- ``children``, ``deadlock``: predictions that wait for child predictions
- ``event_log``: what happened lately, for people
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
