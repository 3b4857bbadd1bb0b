"""Faults put into real appliances, and what became of all they had accepted."""
