"""Runner replicas, and the worker processes that hold the loaded models."""
