"""SQL statements in the form that psycopg and PostgreSQL need."""

from __future__ import annotations

import functools
import re
from typing import Final

from appliance.store.queries import QUERIES, filled, sections

_OVERRIDES: Final = {name: filled(query) for name, query in sections("queries_postgres.sql", "query").items()}
_BY_STATEMENT: Final = {QUERIES[name]: query for name, query in _OVERRIDES.items()}

#: Statements that insert a row and do nothing if there is one with its key. PostgreSQL would otherwise refuse
#: all further statements of the transaction, while SQLite undoes only this statement.
_INSERTS: Final = frozenset(
    QUERIES[name] for name in ("insert_prediction", "insert_token", "insert_model", "insert_release")
)

#: Parameters whose types PostgreSQL cannot find out where they are compared with NULL; all others are texts.
_TYPED: Final = {
    "training": "(%(training)s::integer <> 0)",
    "slower_than": "%(slower_than)s::double precision",
}
_PARAMETER: Final = re.compile(r"(?<![:\w]):(\w+)(?= IS NULL)|(?<![:\w]):(\w+)|\?")

#: The migrations of a PostgreSQL database, in order.
STEPS: Final = tuple(sections("schema_postgres.sql", "step").values())


def must_insert(statement: str) -> bool:
    """Return whether a statement fails with ``IntegrityError`` if it inserts no row."""
    return statement in _INSERTS


@functools.lru_cache(maxsize=1000)
def translated(statement: str) -> str:
    """Return a statement of ``QUERIES``, or of ``narrowed``, for psycopg and PostgreSQL."""
    statement = _BY_STATEMENT.get(statement, statement)
    statement = re.sub(r"--.*", "", statement)  # a comment may contain a colon
    statement = re.sub(r" INDEXED BY \w+", "", statement)  # only for SQLite's planner
    return _PARAMETER.sub(_placeholder, statement.replace("%", "%%")).strip()


def _placeholder(found: re.Match[str]) -> str:
    tested, name = found.groups()
    if tested is not None:
        return _TYPED.get(tested, f"%({tested})s::text")
    return "%s" if name is None else _TYPED.get(name, f"%({name})s")
