"""Machines that belong to one appliance: how they join, and what their agents do for each other."""
