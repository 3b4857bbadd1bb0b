"""Fixtures of the replica that the cluster connects to."""

from tests.unit.worker.conftest import replica, workers

__all__ = ["replica", "workers"]
