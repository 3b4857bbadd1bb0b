"""The command line, with one module for each group of commands.

Commands import heavy libraries only when they run, so that ``--help`` stays fast.
"""

from __future__ import annotations

from appliance.cli.application import main

__all__ = ["main"]
