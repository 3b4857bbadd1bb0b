"""Adds predictions of another appliance to the database."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence

from appliance.domain.prediction import Prediction
from appliance.store import rows
from appliance.store.queries import QUERIES
from appliance.store.unindexed import Unindexed, move_all


def add_missing(store: Unindexed, predictions: Sequence[Prediction]) -> asyncio.Future[int]:
    """Store predictions that have ended, in one transaction; return how many were new.

    Predictions whose ids are stored already are left as they are. New ones are added to the run counts and
    to the usage, except those that were deleted with their version: both still count them.
    """

    def action(connection: sqlite3.Connection) -> int:
        move_all(connection)
        added: set[str] = set()
        for each in predictions:
            stored = connection.execute(QUERIES["status_and_attempt"], {"id": each.id}).fetchone()
            if stored is None and each.id not in added:
                connection.execute(QUERIES["insert_unindexed_prediction"], rows.unindexed_prediction(each))
                added.add(each.id)
        move_all(connection)
        return len(added)

    return store.write(action)
