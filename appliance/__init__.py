"""A self-hosted inference appliance that answers on Replicate's HTTP API."""

__version__ = "0.1.0"
