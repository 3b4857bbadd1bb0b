"""The table of ended predictions that are not in the table ``predictions`` yet.

``predictions`` has so many indexes that one insert writes about twenty pages. A short prediction, which is
stored once and after its end, is therefore inserted into a table without an index, and moved with others.
Reads and deletions of ended predictions move all of them first, so nobody sees the difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from typing import Final

from appliance.domain.errors import StoreError
from appliance.domain.prediction import Prediction
from appliance.store import rows
from appliance.store.connections import Connections
from appliance.store.queries import QUERIES

_log = logging.getLogger(__name__)

_MOST: Final = 100  # predictions in the table; moving them takes about 4 ms, in which no write can commit
_LONGEST: Final = 1.0  # seconds until they are moved


class Unindexed(Connections):
    """Inserts ended predictions, and moves them to the table ``predictions``."""

    _owned = False  # only this process inserts predictions
    _count = 0  # predictions that were inserted since the last move was queued
    _timer: asyncio.TimerHandle | None = None
    _moving: asyncio.Future[None] | None = None  # the last move, until it is done

    async def own(self, patience: float = 0.0, *, term: int | None = None) -> None:
        await super().own(patience, term=term)
        self._owned = True
        with contextlib.suppress(StoreError):  # ``_moved`` logs it, and the next read or write tries again
            await self._put_move()  # an earlier process may have left some

    async def close(self) -> None:
        if self._count:
            self._put_move()
        if self._timer is not None:
            self._timer.cancel()
        await super().close()

    def insert_unindexed(self, prediction: Prediction, *, short: bool) -> asyncio.Future[None]:
        """Store a prediction that has ended. ``short`` as in ``Connections.write``."""

        def action(connection: sqlite3.Connection) -> None:
            connection.execute(QUERIES["insert_unindexed_prediction"], rows.unindexed_prediction(prediction))

        written = self.write(action, short=short)
        self._count += 1
        if self._count >= _MOST:
            self._put_move()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LONGEST, self._put_move)
        return written

    def index(self) -> asyncio.Future[None] | None:
        """Move the predictions that were inserted before this call; None if there are none.

        Reads and writes that are queued once the future is done find them in ``predictions``, as do writes
        that are queued after this call.
        """
        if self._count or not self._owned:  # the process that owns the database may have inserted some
            return self._put_move()
        return self._moving

    async def indexed(self) -> None:
        """Wait until all predictions inserted before this call are in the table ``predictions``.

        If they cannot be moved, for example because the disk is full, the reason is logged.
        """
        if (move := self.index()) is not None:
            with contextlib.suppress(StoreError):
                await asyncio.shield(move)

    def _put_move(self) -> asyncio.Future[None]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        count, self._count = self._count, 0
        self._moving = move = self.write(move_all, alone=True)
        move.add_done_callback(lambda move: self._moved(move, count))
        return move

    def _moved(self, move: asyncio.Future[None], count: int) -> None:
        if self._moving is move:
            self._moving = None
        if not move.cancelled() and isinstance(error := move.exception(), StoreError):
            _log.error(
                "cannot move %d ended predictions to the table predictions: %s: lists and usage lack them "
                "until the next attempt",
                count,
                error,
            )
            self._count += count or 1  # the next read or insert moves them


def move_all(connection: sqlite3.Connection) -> None:
    for query in ("index_predictions", "index_inputs", "delete_unindexed_predictions"):
        connection.execute(QUERIES[query])
