"""SQL statements, read from the .sql files of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final


def sections(file: str, keyword: str) -> dict[str, str]:
    """Split an SQL file at its lines ``-- keyword: name``; return the sections by name, in file order."""
    text = resources.files("appliance.store").joinpath(file).read_text(encoding="utf-8")
    _, *rest = re.split(rf"^-- {keyword}: (\S+)\n", text, flags=re.MULTILINE)
    return dict(zip(rest[::2], rest[1::2], strict=True))


#: Columns of a prediction in ``INSERT`` and ``SELECT``: without its number, and columns only for usage.
COLUMNS: Final = (
    *("id", "model", "version", "owner", "status", "source", "created_at", "started_at", "completed_at"),
    *("deadline", "stream_token", "attempt", "n", "data_removed", "error", "logs", "output", "metrics"),
    *("webhook", "deployment", "destination", "parent", "operation", "token", "hardware", "trace"),
)
#: Columns of a token.
TOKEN_COLUMNS: Final = (
    *("id", "name", "owner", "digest", "created_at", "revoked_at", "scope", "description", "expires_at"),
    *("networks", "models", "last_used_at", "last_used_from"),
)
#: Columns of a user, and of a session.
USER_COLUMNS: Final = (
    *("name", "scope", "created_at", "password", "issuer", "subject", "groups_claim", "last_sign_in_at"),
)
SESSION_COLUMNS: Final = (
    *("id", "user", "digest", "created_at", "expires_at", "ended_at", "address", "browser"),
    *("last_used_at", "last_used_from"),
)
_PLACEHOLDERS: Final = {
    "{user_columns}": ", ".join(USER_COLUMNS),
    "{user_values}": ", ".join(f":{name}" for name in USER_COLUMNS),
    "{session_columns}": ", ".join(f'"{name}"' for name in SESSION_COLUMNS),
    "{session_values}": ", ".join(f":{name}" for name in SESSION_COLUMNS),
    "{token_columns}": ", ".join(TOKEN_COLUMNS),
    "{token_values}": ", ".join(f":{name}" for name in TOKEN_COLUMNS),
    "{columns}": ", ".join(COLUMNS),
    "{marks}": ", ".join("?" for _ in COLUMNS),
    "{values}": ", ".join(f":{name}" for name in COLUMNS),
    "{prediction}": ", ".join(f"p.{name}" for name in COLUMNS),
}


def filled(query: str) -> str:
    """Replace the placeholders for columns."""
    for placeholder, columns in _PLACEHOLDERS.items():
        query = query.replace(placeholder, columns)
    return query


#: Name -> SQL statement.
QUERIES: Final = {name: filled(query) for name, query in sections("queries.sql", "query").items()}

#: The migrations, in order. ``PRAGMA user_version`` is the number of migrations that a database has had.
STEPS: Final = tuple(sections("schema.sql", "step").values())

#: Filter of a list of predictions -> SQL condition. All but the last one can use an index.
_CONDITIONS: Final = {
    "token": "p.token = :token",
    "parent": "p.parent = :parent",
    "source": "p.source = :source",
    "model": "p.model = :model",
    "status": "p.status = :status",
    "owner": "p.owner = :owner",
    "slower_than": "p.completed_at - p.created_at > :slower_than",
}
_ENDS: Final = ("failed", "canceled", "aborted")  # the rare statuses
_SLOW: Final = 1.0  # seconds from creation to end of predictions in the indexes predictions_slow*


def narrowed(name: str, filters: Mapping[str, Any]) -> str:
    """Return the query ``name`` with the conditions of all filters that are not None.

    The query also names the index to use, because SQLite cannot estimate how many predictions match a filter.
    """
    query = QUERIES[name]
    for filter, condition in _CONDITIONS.items():
        if filters[filter] is not None:
            query = query.replace(f"(:{filter} IS NULL OR {condition})", condition)
    found = _index(filters)
    if found is None:
        return query
    index, condition = found
    query = query.replace("FROM predictions AS p JOIN", f"FROM predictions AS p INDEXED BY {index} JOIN")
    return query.replace("\nORDER BY", f" AND {condition}\nORDER BY")


def _index(filters: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the name and the WHERE condition of the best index; None to let SQLite choose."""
    owned = filters["owner"] is not None
    if filters["token"] is not None:
        return "predictions_by_token", "p.token IS NOT NULL"
    if filters["parent"] is not None:
        return "predictions_by_parent", "p.parent IS NOT NULL"
    if filters["source"] not in {None, "api"}:
        return "predictions_by_source", "p.source <> 'api'"
    if filters["training"] and not owned:
        return "trainings_by_creation", "p.destination IS NOT NULL"
    if filters["status"] in _ENDS:
        index = "predictions_by_owner_and_end" if owned else "predictions_by_end"
        return index, f"p.status IN {_ENDS}"
    if filters["status"] in {"starting", "processing"}:
        return "predictions_unfinished", "p.status IN ('starting', 'processing')"
    if (filters["slower_than"] or 0.0) >= _SLOW:
        index = "predictions_slow_by_owner" if owned else "predictions_slow"
        return index, f"p.completed_at - p.created_at > {_SLOW}"
    if filters["model"] is not None:
        return "predictions_by_owner_and_model" if owned else "predictions_by_model", "TRUE"
    return ("predictions_by_owner", "TRUE") if owned and filters["training"] is None else None
