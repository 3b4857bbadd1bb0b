"""Which prediction runs, which model is loaded where, and which makes room."""

from appliance.scheduler.facts import Capacity, Decision, Demand, Load, Refuse, Residency, Start, Unload
from appliance.scheduler.scheduler import BACKOFF, MIN_RESIDENCY, PATIENCE, Scheduler

__all__ = [
    "BACKOFF",
    "MIN_RESIDENCY",
    "PATIENCE",
    "Capacity",
    "Decision",
    "Demand",
    "Load",
    "Refuse",
    "Residency",
    "Scheduler",
    "Start",
    "Unload",
]
