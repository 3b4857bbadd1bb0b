"""JSON schemas of inputs; ``ge`` and ``le`` are the smallest and the largest valid value, as in Cog."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def string(description: str, *, default: str | None = None, **keywords: Any) -> dict[str, Any]:
    return _schema("string", description, default=default, **keywords)


def boolean(description: str, *, default: bool) -> dict[str, Any]:
    return _schema("boolean", description, default=default)


def choice(description: str, values: Iterable[str], *, default: str) -> dict[str, Any]:
    return _schema("string", description, default=default, enum=list(values))


def integer(
    description: str, *, default: int | None = None, ge: int | None = None, le: int | None = None
) -> dict[str, Any]:
    return _schema("integer", description, default=default, minimum=ge, maximum=le)


def number(
    description: str, *, default: float | None = None, ge: float | None = None, le: float | None = None
) -> dict[str, Any]:
    return _schema("number", description, default=default, minimum=ge, maximum=le)


def _schema(type: str, description: str, **keywords: Any) -> dict[str, Any]:
    given = {name: value for name, value in keywords.items() if value is not None}
    return {"type": type, **given, "description": description}
