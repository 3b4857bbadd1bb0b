"""Fault injection into real appliances, with counts of lost and wrong predictions and files."""
