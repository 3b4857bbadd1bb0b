"""Replicate's HTTP API: routes by resource; each parses, asks the engine or the store, and answers."""

from appliance.gateway.api.application import Application, create_api

__all__ = ["Application", "create_api"]
