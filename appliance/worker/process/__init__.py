"""The worker process, which loads one model and runs its predictions."""

from __future__ import annotations

from appliance.worker.process.lifecycle import environment, run

__all__ = ["environment", "run"]
