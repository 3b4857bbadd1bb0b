"""The command line. Every module here is one group of commands; heavy imports wait until a command runs."""

from __future__ import annotations

from appliance.cli.application import main

__all__ = ["main"]
