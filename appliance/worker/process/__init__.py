"""The worker process: the child process that holds one loaded model."""

from __future__ import annotations

from appliance.worker.process.lifecycle import environment, run

__all__ = ["environment", "run"]
