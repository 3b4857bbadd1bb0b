"""Formats of the HTTP API and of other services: JSON, server-sent events, media, content encodings."""
