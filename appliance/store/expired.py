"""Finds the predictions and conversations that are old enough to be deleted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, NamedTuple

from appliance.store.queries import QUERIES
from appliance.store.records import Position

#: Chooses what is deleted, by model and owner.
Applies = Callable[[str, str], bool]

SCANNED: Final = 2000  # rows that one call looks at; a few milliseconds


class Expired(NamedTuple):
    """Rows to delete, and where to continue."""

    rows: list[tuple[int, str, float]]  # the number of the row, the id, and the time in Unix seconds
    position: Position | None  # of the last row that was looked at; None: there are no more


def find(
    connection: sqlite3.Connection, query: str, before: float, limit: int, applies: Applies, after: Position
) -> Expired:
    """Find up to ``limit`` rows from before a Unix time and after a position, which ``applies`` chooses.

    ``query`` is the name of a query that returns number, id, model, owner and time, sorted by time, number.
    """
    names = {"before": before, "after": after.at, "after_number": after.number, "limit": SCANNED}
    chosen: list[tuple[int, str, float]] = []
    position, count = after, 0
    for number, id, model, owner, at in connection.execute(QUERIES[query], names):
        count += 1
        position = Position(at, number)
        if applies(model, owner):
            chosen.append((number, id, at))
        if len(chosen) == limit:
            break
    more = len(chosen) == limit or count == SCANNED
    return Expired(chosen, position if more else None)
