"""The tables of predictions: records, inputs and events."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Sequence
from typing import Any, Final, Unpack

from appliance.domain.errors import StatusConflict, StoreError
from appliance.domain.prediction import TRANSITIONS, Done, OutputItems, Prediction, Status, new_id
from appliance.store import rows, search
from appliance.store.connections import Parameters
from appliance.store.database import stream
from appliance.store.queries import QUERIES, narrowed
from appliance.store.records import Cursor, Filter, Found, Progress
from appliance.store.unindexed import Unindexed

# Named here because the method ``list`` hides the builtin in the class body.
Predictions = list[Prediction]
Ids = list[str]

#: Bytes of input or output, about; msgpack and SQLite take less than a millisecond for these.
_SMALL: Final = 64 * 1024

#: Predictions that one search looks at, at most; about half a second if they are small.
SEARCHED: Final = 10_000
#: Bytes of inputs and outputs that one search looks at, about.
SEARCHED_BYTES: Final = 64 * 1024**2

#: status -> the statuses that it can follow; two at most
_SOURCES: Final = {
    status: [source.value for source in Status if status in TRANSITIONS[source]] for status in Status
}


class PredictionTable(Unindexed):
    """Predictions. Status changes are guarded updates: a change fails if the stored status does not allow it.

    Of 100,000 records, a finished one is read in 60 us on the event loop and in 300 us through a thread, so
    single rows are read on the loop. Lists, and records with events to apply, are read in the reader threads.
    """

    def create(self, prediction: Prediction) -> asyncio.Future[None]:
        """Store a new prediction, in any status, and increment the run count of its model.

        A prediction that has ended is also added to the usage.

        Raises:
            ValueError: the prediction has ended and has a webhook, which only ``finish`` makes due.
        """
        if prediction.status.terminal:
            if prediction.webhook is not None:
                raise ValueError(
                    f"prediction {prediction.id} has a webhook: store the prediction before it ends"
                )
            small = _is_small([prediction.input, prediction.output, prediction.logs])
            return self.insert_unindexed(prediction, short=small)

        def action(connection: sqlite3.Connection) -> None:
            columns = rows.prediction_columns(prediction)
            body = rows.pack(prediction.input)
            try:
                number = connection.execute(QUERIES["insert_prediction"], columns).lastrowid
            except sqlite3.IntegrityError as exc:
                raise StoreError(f"prediction {prediction.id} exists already ({exc})") from exc
            connection.execute(QUERIES["insert_input"], {"prediction": number, "body": body})

        return self.write(action, short=_is_small(prediction.input))

    def claim(self, prediction: Prediction) -> asyncio.Future[None]:
        """Move ``starting -> processing``; ``prediction.attempt`` must be one more than the stored attempt.

        Raises:
            ValueError: the prediction's status is not ``processing``.
        """
        if prediction.status is not Status.PROCESSING:
            raise ValueError(
                f"prediction {prediction.id} has the status {prediction.status}: it must be processing"
            )
        return self._move(prediction, prediction.attempt - 1)

    def requeue(self, prediction: Prediction) -> asyncio.Future[None]:
        """Move ``processing -> starting`` and delete the events of the attempt.

        Raises:
            ValueError: the prediction's status is not ``starting``.
        """
        if prediction.status is not Status.STARTING:
            raise ValueError(
                f"prediction {prediction.id} has the status {prediction.status}: it must be starting"
            )
        return self._move(prediction, prediction.attempt)

    def finish(self, prediction: Prediction) -> asyncio.Future[None]:
        """Write the complete terminal record, once, and delete its events in the same transaction.

        The same transaction adds the prediction to the usage, and makes its last webhook due if the webhook
        includes ``completed``.

        The future fails with StatusConflict if the stored prediction is terminal, or ``TRANSITIONS`` has no
        transition from its status to this one. Attempts are not compared: a cancel may be decided before a
        queued ``claim``.

        Raises:
            ValueError: its status is not terminal.
        """
        if not prediction.status.terminal:
            raise ValueError(
                f"prediction {prediction.id} has the status {prediction.status}: it must have ended"
            )
        # Of any attempt: a cancel may be decided while the claim of the next attempt is queued.
        return self._move(prediction, None)

    def _move(self, prediction: Prediction, from_attempt: int | None) -> asyncio.Future[None]:
        sources = _SOURCES[prediction.status]

        def action(connection: sqlite3.Connection) -> None:
            columns = rows.prediction_columns(prediction) | rows.usage_columns(prediction)
            columns |= {
                "from_status": sources[0],
                "or_from_status": sources[-1],
                "from_attempt": from_attempt,
            }
            if connection.execute(QUERIES["move_prediction"], columns).rowcount != 1:
                raise _conflict(connection, prediction.id, f"become {prediction.status}")
            webhook = prediction.webhook
            if prediction.status.terminal and webhook is not None and "completed" in webhook.events:
                due = {
                    "id": f"msg_{new_id()}",
                    "prediction": prediction.id,
                    "due_at": time.time(),
                    "receiver": f"{prediction.owner} {webhook.host}",
                }
                connection.execute(QUERIES["insert_delivery"], due)

        return self.write(action, short=_is_small([prediction.output, prediction.logs]))

    def append(self, id: str, attempt: int, events: Sequence[tuple[int, Progress]]) -> asyncio.Future[None]:
        """Store numbered events of a running attempt; numbers that are already stored are skipped.

        The future fails with StatusConflict if that attempt of the prediction is not ``processing``.
        """
        if any(isinstance(event, Done) for _, event in events):
            raise ValueError(f"prediction {id}: append does not accept Done: call finish")

        def action(connection: sqlite3.Connection) -> None:
            bodies = [(n, rows.pack(event)) for n, event in events]
            found = connection.execute(QUERIES["running"], {"id": id, "attempt": attempt}).fetchone()
            if found is None:
                raise _conflict(connection, id, f"store events of attempt {attempt}")
            connection.executemany(
                QUERIES["insert_event"],
                [{"prediction": found[0], "attempt": attempt, "n": n, "body": body} for n, body in bodies],
            )

        return self.write(action)  # in the thread: many predictions are appended to at the same time

    # -- reading predictions

    async def get(self, id: str) -> Prediction | None:
        """Return the prediction with the events of its current attempt applied; None if it is not stored."""
        return await self._prediction("prediction_by_id", {"id": id})

    async def by_stream_token(self, token: str) -> Prediction | None:
        """Return the prediction whose stream URL contains ``token``, with its events applied."""
        return await self._prediction("prediction_by_stream_token", {"stream_token": token})

    async def list(
        self, owner: str | None, *, cursor: Cursor | None = None, limit: int = 100, **filters: Unpack[Filter]
    ) -> Predictions:
        """Return a page of the predictions of ``owner`` (None: of all), newest first by ``(created_at, id)``.

        Running predictions have the record last written by ``claim``, without their events.
        """
        query, parameters, backwards = _selection(owner, cursor, limit, filters)

        def action(connection: sqlite3.Connection) -> Predictions:
            page = [rows.prediction(row) for row in connection.execute(query, parameters)]
            return page[::-1] if backwards else page

        await self.indexed()
        return await self.read(action)

    async def search(
        self,
        owner: str | None,
        text: str,
        *,
        cursor: Cursor | None = None,
        limit: int = 100,
        **filters: Unpack[Filter],
    ) -> Found:
        """Return those of ``list`` whose id, input, output or error contains ``text``, in any case.

        A search ends after ``SEARCHED`` predictions, or ``SEARCHED_BYTES`` of their inputs and outputs. The
        output of running predictions is not searched.
        """
        query, parameters, backwards = _selection(owner, cursor, SEARCHED, filters)
        contains = search.matcher(text)

        def action(connection: sqlite3.Connection) -> Found:
            page: Predictions = []
            size, row, count = 0, None, 0
            for count, row in enumerate(stream(connection, query, parameters), 1):  # noqa: B007 - used below
                size += search.size(row)
                if contains(row):
                    page.append(rows.prediction(row))
                if len(page) == limit or size >= SEARCHED_BYTES:
                    break
            complete = len(page) < limit and size < SEARCHED_BYTES and count < SEARCHED
            stopped = None if complete or row is None else search.position(row, backwards=backwards)
            return Found(page[::-1] if backwards else page, stopped)

        await self.indexed()
        return await self.read(action)

    async def children(self, parent: str) -> Ids:
        """Return the ids of the predictions that ``parent`` created while it ran, oldest first."""
        await self.indexed()
        return await self.read(
            lambda connection: [row[0] for row in connection.execute(QUERIES["children"], {"parent": parent})]
        )

    async def unfinished(self) -> Predictions:
        """Return all predictions that are not terminal, oldest first, with their events applied."""

        def action(connection: sqlite3.Connection) -> Predictions:
            found = connection.execute(QUERIES["unfinished_predictions"]).fetchall()
            return [_with_events(connection, rows.prediction(row)) for row in found]

        return await self.read(action)

    async def run_counts(self) -> dict[str, int]:
        """Return the number of predictions ever created, by model."""
        await self.indexed()
        return await self.read(lambda connection: dict(connection.execute(QUERIES["run_counts"])))

    async def _prediction(self, query: str, parameters: Parameters) -> Prediction | None:
        row = await self.row(query, parameters)
        if row is None:
            return None
        record = rows.prediction(row)
        if record.status.terminal:
            return record

        def action(connection: sqlite3.Connection) -> Prediction:
            # Read again: it may have finished since, and its events been deleted.
            found = connection.execute(QUERIES[query], parameters).fetchone()
            return _with_events(connection, rows.prediction(found))

        return await self.read(action)


def _selection(
    owner: str | None, cursor: Cursor | None, limit: int, filters: Filter
) -> tuple[str, Parameters, bool]:
    """Return the query for a page of a list, its parameters, and whether its rows are oldest first."""
    training = filters.get("training", False)
    after = _or_default(filters.get("created_after"), -math.inf)
    before = _or_default(filters.get("created_before"), math.inf)
    # A time bound is a position in the list. No id is empty, so (bound, "") is exact.
    backwards = cursor is not None and cursor.backwards
    bounds = [(after, "") if backwards else (before, "")]
    if cursor is not None:
        bounds.append((cursor.created_at, cursor.id))
    start = max(bounds) if backwards else min(bounds)
    subject = "all_predictions" if owner is None or training is None else "predictions"
    parameters: Parameters = {
        "owner": owner,
        "place_created_at": start[0],
        "place_id": start[1],
        "model": filters.get("model"),
        "status": filters.get("status"),
        "source": filters.get("source"),
        "training": training,
        "parent": filters.get("parent"),
        "token": filters.get("token"),
        "slower_than": filters.get("slower_than"),
        "created_after": after,
        "created_before": before,
        "limit": limit,
    }
    query = narrowed(f"{subject}_{'newer' if backwards else 'older'}", parameters)
    return query, parameters, backwards


def _is_small(value: Any) -> bool:
    """Return whether a value is certainly encoded and written in less than a millisecond."""
    budget = _SMALL
    left = [value]
    while left and budget > 0:
        part = left.pop()
        if isinstance(part, str | bytes):
            budget -= len(part)
        elif isinstance(part, dict | list | OutputItems):
            budget -= 64 * len(part)
            if budget > 0:
                left.extend(part.values() if isinstance(part, dict) else part)
        else:
            budget -= 8
    return budget > 0


def _or_default(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _with_events(connection: sqlite3.Connection, record: Prediction) -> Prediction:
    found = connection.execute(QUERIES["events_of_attempt"], {"id": record.id, "attempt": record.attempt})
    for n, body in found:
        record = record.apply(rows.unpack(body, Progress), n)
    return record


def _conflict(connection: sqlite3.Connection, id: str, change: str) -> StatusConflict:
    found = connection.execute(QUERIES["status_and_attempt"], {"id": id}).fetchone()
    state = "it is not stored" if found is None else f"it is {found[0]} in attempt {found[1]}"
    return StatusConflict(f"prediction {id} cannot {change}: {state}")
