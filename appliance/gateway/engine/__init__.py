"""The one loop that owns every status: takes predictions, places models, runs, stores, publishes."""

from appliance.gateway.engine.engine import Engine
from appliance.gateway.engine.loop import INTERRUPTED

__all__ = ["INTERRUPTED", "Engine"]
