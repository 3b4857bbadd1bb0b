"""Decides which predictions start, and which models are loaded, put to sleep or unloaded.

The scheduler is pure: no I/O, no clock, no tasks. The engine (``appliance.gateway.engine``) carries its
decisions out, and so does the simulator (``scripts/simulate``).

**Input**: devices (``Capacity``), the needs of models (``Demand``), and events with their times. Events are
calls of methods, for predictions (``queued``, ``finished``, ...), for models (``loaded``, ``unloaded``,
``lost``, ...), for devices (``device_used``) and for nodes of a cluster (``add_devices``, ...).

**Output**: decisions, from ``Scheduler.decide``:

- ``Start`` a prediction on a model that is ready, or ``Refuse`` a child prediction that could never start;
- ``Load`` a model on devices, or ``Unload`` it;
- put a model to ``Sleep`` (its weights leave the devices, its worker process keeps running), or ``Wake`` it.

``Scheduler.next_wakeup`` returns the time at which to call ``decide`` again if no event happens before.

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
- ``model``: state, queue and measurements of one model
- ``fair_queue``: the queue of one model, shared fairly between accounts
- ``scheduler``: the class that the engine calls; read ``decide`` first
- ``queries``: its base class, with the methods that change nothing
- ``model_index``: the models that a decision has to consider
- ``placements``: which waiting models are loaded, and which models are evicted for them
- ``backlog``, ``device_index``: the waiting models and devices that a decision considers if there are many
- ``plan``: the best devices and victims for one model
- ``policy``: costs, patience, the bound on thrashing, and other numbers behind these plans
- ``ledger``: reserved bytes of every device
- ``transitions``: every change of a model's state
- ``footprints``: measured memory of models
- ``nodes``: nodes of a cluster that are removed or drained
- ``locality``: the nodes that have weights and instances of a model
- ``rebalancing``: moves queued predictions between instances of one model
- ``children``, ``deadlock``: predictions that wait for child predictions
- ``event_log``: the last events, for logs, metrics and the admin API
"""

from appliance.scheduler.event_log import Event, EventKind
from appliance.scheduler.facts import (
    Capacity,
    Decision,
    Demand,
    Load,
    Origin,
    Owner,
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
from appliance.scheduler.nodes import NodeModels, UnplaceableModel
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
    "NodeModels",
    "Origin",
    "Owner",
    "Refuse",
    "Residency",
    "Scheduler",
    "Sleep",
    "SleepFootprint",
    "SleepLevel",
    "Start",
    "Unload",
    "UnplaceableModel",
    "Wake",
]
