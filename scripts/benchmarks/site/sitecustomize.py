"""Imported by every Python process of a measured appliance, because this folder is in its PYTHONPATH."""

from scripts.benchmarks import hooks

hooks.install()
