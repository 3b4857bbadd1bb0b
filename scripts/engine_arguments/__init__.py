"""Generates the table of vLLM's engine arguments, with which the config is checked without importing vLLM."""
