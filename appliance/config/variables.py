"""Environment variables in values of models.yaml: ``${NAME}``, ``${NAME:-default}``; ``$$`` is a ``$``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_REFERENCE: Final = re.compile(r"\$(?:\$|\{(?:([A-Za-z_]\w*)(:-[^}]*)?\})?)", re.ASCII)


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replace the references to variables. The default applies if the variable is not set or is empty.

    Raises:
        ValueError: a variable without a default is not set, or a reference is malformed.
    """

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if found[0] == "$$":
            return "$"
        if name is None:
            raise ValueError("write ${NAME}, ${NAME:-default}, or $$ for a dollar sign")
        if default is not None:
            return environment.get(name) or default[2:]
        if name not in environment:
            raise ValueError(
                f"the environment variable {name} is not set: set it, or write ${{{name}:-default}}"
            )
        return environment[name]

    return _REFERENCE.sub(value, text)


def names(text: str) -> set[str]:
    """Return the names of the variables to which ``text`` refers."""
    return {found[1] for found in _REFERENCE.finditer(text) if found[1] is not None}


def escape(value: Any) -> Any:
    """Return JSON data with every dollar sign doubled, so that ``expand`` returns the original."""
    if isinstance(value, dict):
        return {key: escape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [escape(each) for each in value]
    return value.replace("$", "$$") if isinstance(value, str) else value
