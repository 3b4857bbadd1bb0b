"""Compat APIs: OpenAI's and Anthropic's. Each call creates an ordinary prediction."""

from __future__ import annotations
