"""The command line, with one module for each group of commands.

A command imports heavy libraries when it runs, so that `--help` stays fast.
"""

from __future__ import annotations

from appliance.cli.application import main

__all__ = ["main"]
