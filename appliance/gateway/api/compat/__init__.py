"""Compat APIs: OpenAI's and Anthropic's. Each call is an ordinary prediction."""

from __future__ import annotations
