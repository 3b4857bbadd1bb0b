"""Starts and reaches runner replicas. ``base`` is the interface; ``ray`` and ``ray_node`` use Ray."""
