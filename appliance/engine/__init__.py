"""The one loop that owns every status: takes predictions, places models, runs, stores, publishes."""

from appliance.engine.engine import Engine

__all__ = ["Engine"]
