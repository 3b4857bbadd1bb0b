"""OpenAI's and Anthropic's APIs, for clients that speak those: each call is a prediction like any other."""

from __future__ import annotations
