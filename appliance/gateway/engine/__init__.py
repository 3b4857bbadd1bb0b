"""The engine owns every unfinished prediction and decides, with the scheduler, which models are loaded."""

from appliance.gateway.engine.dependencies import Dependencies
from appliance.gateway.engine.engine import Engine
from appliance.gateway.engine.predictions import INTERRUPTED

__all__ = ["INTERRUPTED", "Dependencies", "Engine"]
